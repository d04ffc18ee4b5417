// `JSON.parse` accepts two members of one name, and half of a surrogate pair. Two programs could
// understand such a token differently, so tokens are parsed here: strictly, and in one pass.

/** The text is not the JSON that is expected. */
export class JsonError extends Error {}

/** The largest number of arrays and objects in each other in the value of a claim. */
const MAX_DEPTH = 127;

const QUOTE = 0x22;
const BACKSLASH = 0x5c;
const OPEN_BRACKET = 0x5b;
const CLOSE_BRACKET = 0x5d;
const OPEN_BRACE = 0x7b;
const CLOSE_BRACE = 0x7d;
const COLON = 0x3a;
const COMMA = 0x2c;

const NUMBER = /-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?/y;
const HEX = /[0-9a-fA-F]{4}/y;
const LITERALS = ['true', 'false', 'null'];
const ESCAPES = new Map([
  ['"', '"'],
  ['\\', '\\'],
  ['/', '/'],
  ['b', '\b'],
  ['f', '\f'],
  ['n', '\n'],
  ['r', '\r'],
  ['t', '\t'],
]);
const LEAST_INT64 = -(2n ** 63n);
const LARGEST_INT64 = 2n ** 63n - 1n;

/** Reads JSON (RFC 8259) from a text. */
export class JsonParser {
  readonly #text: string;
  #at = 0;

  constructor(text: string) {
    this.#text = text;
  }

  /** Reads an object. It calls `member` with each name when the parser is at the value. */
  object(member: (name: string) => void): void {
    this.#expect(OPEN_BRACE);
    if (this.#take(CLOSE_BRACE)) return;
    do {
      const name = this.string();
      this.#expect(COLON);
      member(name);
    } while (this.#take(COMMA));
    this.#expect(CLOSE_BRACE);
  }

  /** Reads an array. It calls `element` when the parser is at an element. */
  array(element: () => void): void {
    this.#expect(OPEN_BRACKET);
    if (this.#take(CLOSE_BRACKET)) return;
    do element();
    while (this.#take(COMMA));
    this.#expect(CLOSE_BRACKET);
  }

  /** Reads the end of the text. */
  end(): void {
    this.#skipSpace();
    if (this.#at < this.#text.length) throw new JsonError();
  }

  /** Returns whether the next value is a string. */
  isAtString(): boolean {
    return this.#peek() === QUOTE;
  }

  /** Reads `null`, if it is the next value. */
  takeNull(): boolean {
    this.#skipSpace();
    if (!this.#text.startsWith('null', this.#at)) return false;
    this.#at += 4;
    return true;
  }

  /** Reads a string. */
  string(): string {
    this.#expect(QUOTE);
    const text = this.#text;
    let start = this.#at;
    let read = '';
    for (;;) {
      // `charCodeAt` returns NaN at the end.
      const next = text.charCodeAt(this.#at);
      if (next === QUOTE) {
        read += text.slice(start, this.#at++);
        return read;
      }
      if (next === BACKSLASH) {
        read += text.slice(start, this.#at++) + this.#escape();
        start = this.#at;
      } else if (next >= 0x20) {
        this.#at++;
      } else {
        throw new JsonError();
      }
    }
  }

  /** Reads what follows a backslash. Half a surrogate pair is not a character. */
  #escape(): string {
    const kind = this.#text.charAt(this.#at++);
    if (kind !== 'u') {
      const character = ESCAPES.get(kind);
      if (character === undefined) throw new JsonError();
      return character;
    }
    const first = this.#hex();
    if (first < 0xd800 || first > 0xdfff) return String.fromCharCode(first);
    if (first > 0xdbff || !this.#text.startsWith('\\u', this.#at)) throw new JsonError();
    this.#at += 2;
    const second = this.#hex();
    if (second < 0xdc00 || second > 0xdfff) throw new JsonError();
    return String.fromCharCode(first, second);
  }

  #hex(): number {
    HEX.lastIndex = this.#at;
    const digits = HEX.exec(this.#text)?.[0];
    if (digits === undefined) throw new JsonError();
    this.#at += 4;
    return parseInt(digits, 16);
  }

  /** Reads the text of a number. It is an integer if it has neither a fraction nor an exponent. */
  #number(): { text: string; isInteger: boolean } {
    this.#skipSpace();
    NUMBER.lastIndex = this.#at;
    const found = NUMBER.exec(this.#text);
    if (found === null) throw new JsonError();
    const [text, fraction, exponent] = found;
    this.#at += text.length;
    return { text, isInteger: fraction === undefined && exponent === undefined };
  }

  /**
   * Reads a whole number of 64 bits that is written without a fraction and without an exponent. It
   * is rounded to a double.
   */
  integer(): number {
    const { text, isInteger } = this.#number();
    // Zero has no sign.
    if (!isInteger || text === '-0') throw new JsonError();
    if (text.length > 15) {
      // The digits are counted first, because the conversion of very many takes long.
      if (text.length > 20) throw new JsonError();
      const exact = BigInt(text);
      if (exact < LEAST_INT64 || exact > LARGEST_INT64) throw new JsonError();
    }
    return Number(text);
  }

  /**
   * Reads any value, and returns its text. No object in it may have two members of one name, its
   * numbers must be in the range of doubles, and it must not be nested too deeply.
   */
  raw(): string {
    this.#skipSpace();
    const start = this.#at;
    this.#check(0);
    return this.#text.slice(start, this.#at);
  }

  #check(depth: number): void {
    switch (this.#peek()) {
      case OPEN_BRACE: {
        if (depth === MAX_DEPTH) throw new JsonError();
        const names = new Set<string>();
        this.object((name) => {
          if (names.has(name)) throw new JsonError();
          names.add(name);
          this.#check(depth + 1);
        });
        break;
      }
      case OPEN_BRACKET:
        if (depth === MAX_DEPTH) throw new JsonError();
        this.array(() => {
          this.#check(depth + 1);
        });
        break;
      case QUOTE:
        this.string();
        break;
      default:
        if (!this.#literal() && !Number.isFinite(Number(this.#number().text))) {
          throw new JsonError();
        }
    }
  }

  /** Reads `true`, `false` or `null`, if one of them is next. */
  #literal(): boolean {
    const found = LITERALS.find((name) => this.#text.startsWith(name, this.#at));
    this.#at += found?.length ?? 0;
    return found !== undefined;
  }

  /**
   * Reads any value, and checks only its syntax, except that escapes of half a character pass. It
   * needs no stack, so the value may be nested to any depth.
   */
  ignore(): void {
    const closing: number[] = [];
    for (;;) {
      if (this.#ignoreScalar(closing)) {
        // An array or an object has begun, and is not empty.
        continue;
      }
      // A value has ended.
      for (;;) {
        const last = closing.at(-1);
        if (last === undefined) return;
        if (this.#take(last)) {
          closing.pop();
          continue;
        }
        this.#expect(COMMA);
        if (last === CLOSE_BRACE) this.#ignoreName();
        break;
      }
    }
  }

  /** Reads a value without members, or the begin of another one. Returns true after a begin. */
  #ignoreScalar(closing: number[]): boolean {
    switch (this.#peek()) {
      case OPEN_BRACE:
        this.#at++;
        if (this.#take(CLOSE_BRACE)) return false;
        closing.push(CLOSE_BRACE);
        this.#ignoreName();
        return true;
      case OPEN_BRACKET:
        this.#at++;
        if (this.#take(CLOSE_BRACKET)) return false;
        closing.push(CLOSE_BRACKET);
        return true;
      case QUOTE:
        this.#ignoreString();
        return false;
      default:
        if (!this.#literal()) this.#number();
        return false;
    }
  }

  #ignoreName(): void {
    this.#ignoreString();
    this.#expect(COLON);
  }

  #ignoreString(): void {
    this.#expect(QUOTE);
    for (;;) {
      const next = this.#text.charCodeAt(this.#at++);
      if (next === QUOTE) return;
      if (next === BACKSLASH) {
        const kind = this.#text.charAt(this.#at++);
        if (kind === 'u') this.#hex();
        else if (!ESCAPES.has(kind)) throw new JsonError();
      } else if (!(next >= 0x20)) {
        throw new JsonError();
      }
    }
  }

  #skipSpace(): void {
    for (;;) {
      const next = this.#text.charCodeAt(this.#at);
      if (next !== 0x20 && next !== 0x09 && next !== 0x0a && next !== 0x0d) return;
      this.#at++;
    }
  }

  /** Skips white space, and returns the next character, or NaN at the end. */
  #peek(): number {
    this.#skipSpace();
    return this.#text.charCodeAt(this.#at);
  }

  /** Skips white space, and reads a character if it is the next one. */
  #take(expected: number): boolean {
    if (this.#peek() !== expected) return false;
    this.#at++;
    return true;
  }

  #expect(expected: number): void {
    if (!this.#take(expected)) throw new JsonError();
  }
}

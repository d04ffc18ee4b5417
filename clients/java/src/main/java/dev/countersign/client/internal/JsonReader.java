package dev.countersign.client.internal;

import java.math.BigInteger;
import java.nio.ByteBuffer;
import java.nio.charset.CharacterCodingException;
import java.nio.charset.StandardCharsets;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;

/**
 * Reads JSON (RFC 8259) strictly, and in one pass. The usual libraries accept two members of one
 * name, or text that is not valid, so that two programs could understand a token differently.
 */
final class JsonReader {
  /** The largest number of arrays and objects in each other in the value of a claim. */
  private static final int MAX_DEPTH = 127;

  private static final int END = -1;

  private final byte[] text;
  private final boolean isAscii;
  private int at;

  /** Reads this text, which must be valid UTF-8. */
  JsonReader(byte[] text) throws JsonException {
    this.text = text;
    this.isAscii = isAscii(text);
    if (!isAscii) {
      try {
        StandardCharsets.UTF_8.newDecoder().decode(ByteBuffer.wrap(text));
      } catch (CharacterCodingException e) {
        throw new JsonException();
      }
    }
  }

  private static boolean isAscii(byte[] text) {
    for (byte next : text) {
      if (next < 0) {
        return false;
      }
    }
    return true;
  }

  /** Returns the position. */
  int position() {
    peek();
    return at;
  }

  /** Returns the text from a position to the present one. */
  String textFrom(int start) {
    return new String(text, start, at - start, StandardCharsets.UTF_8);
  }

  /** Skips white space, and returns the next byte, or a negative number at the end. */
  int peek() {
    while (at < text.length) {
      byte next = text[at];
      if (next == ' ' || next == '\t' || next == '\n' || next == '\r') {
        at++;
      } else {
        return next;
      }
    }
    return END;
  }

  /** Skips white space, and reads a byte if it is the next one. */
  boolean take(char expected) {
    if (peek() != expected) {
      return false;
    }
    at++;
    return true;
  }

  void expect(char expected) throws JsonException {
    if (!take(expected)) {
      throw new JsonException();
    }
  }

  /** Begins an array or object. Returns whether it has an element or a member. */
  boolean begin(char open, char close) throws JsonException {
    expect(open);
    return !take(close);
  }

  /** Returns whether an array or object has another element or member. */
  boolean more(char close) throws JsonException {
    if (take(close)) {
      return false;
    }
    expect(',');
    return true;
  }

  /** Reads the name of a member, and the colon. */
  String name() throws JsonException {
    String name = string();
    expect(':');
    return name;
  }

  /** Checks that only white space is left. */
  void end() throws JsonException {
    peek();
    if (at < text.length) {
      throw new JsonException();
    }
  }

  String string() throws JsonException {
    expect('"');
    int start = at;
    while (at < text.length) {
      byte next = text[at];
      if (next == '"') {
        String read =
            new String(
                text,
                start,
                at - start,
                isAscii ? StandardCharsets.ISO_8859_1 : StandardCharsets.UTF_8);
        at++;
        return read;
      }
      if (next == '\\') {
        return escaped(start);
      }
      if (next >= 0 && next < ' ') {
        throw new JsonException();
      }
      at++;
    }
    throw new JsonException();
  }

  /** Reads the rest of a string, from its first escape. */
  private String escaped(int start) throws JsonException {
    StringBuilder read = new StringBuilder();
    int from = start;
    while (at < text.length) {
      byte next = text[at];
      if (next == '"') {
        read.append(new String(text, from, at - from, StandardCharsets.UTF_8));
        at++;
        return read.toString();
      }
      if (next >= 0 && next < ' ') {
        throw new JsonException();
      }
      if (next == '\\') {
        read.append(new String(text, from, at - from, StandardCharsets.UTF_8));
        at++;
        escape(read);
        from = at;
      } else {
        at++;
      }
    }
    throw new JsonException();
  }

  /** Reads what follows a backslash. Half a surrogate pair is not a character. */
  private void escape(StringBuilder into) throws JsonException {
    if (at == text.length) {
      throw new JsonException();
    }
    byte kind = text[at++];
    switch (kind) {
      case '"', '\\', '/' -> into.append((char) kind);
      case 'b' -> into.append('\b');
      case 'f' -> into.append('\f');
      case 'n' -> into.append('\n');
      case 'r' -> into.append('\r');
      case 't' -> into.append('\t');
      case 'u' -> {
        char first = hex();
        into.append(first);
        if (!Character.isSurrogate(first)) {
          return;
        }
        boolean isPair =
            Character.isHighSurrogate(first)
                && at + 2 <= text.length
                && text[at] == '\\'
                && text[at + 1] == 'u';
        if (!isPair) {
          throw new JsonException();
        }
        at += 2;
        char second = hex();
        if (!Character.isLowSurrogate(second)) {
          throw new JsonException();
        }
        into.append(second);
      }
      default -> throw new JsonException();
    }
  }

  private char hex() throws JsonException {
    if (at + 4 > text.length) {
      throw new JsonException();
    }
    int number = 0;
    for (int end = at + 4; at < end; at++) {
      byte next = text[at];
      int digit = next < 0 ? -1 : Character.digit(next, 16);
      if (digit < 0) {
        throw new JsonException();
      }
      number = number << 4 | digit;
    }
    return (char) number;
  }

  /** Skips a number. Returns whether it has neither a fraction nor an exponent. */
  private boolean skipNumber() throws JsonException {
    skip('-');
    if (!skip('0')) {
      digits();
    }
    boolean isInteger = true;
    if (skip('.')) {
      isInteger = false;
      digits();
    }
    if (skip('e') || skip('E')) {
      isInteger = false;
      if (!skip('+')) {
        skip('-');
      }
      digits();
    }
    return isInteger;
  }

  private boolean skip(char expected) {
    if (at < text.length && text[at] == expected) {
      at++;
      return true;
    }
    return false;
  }

  private void digits() throws JsonException {
    int start = at;
    while (at < text.length && text[at] >= '0' && text[at] <= '9') {
      at++;
    }
    if (at == start) {
      throw new JsonException();
    }
  }

  /** Reads a whole number that is written without a fraction and without an exponent. */
  long integer() throws JsonException {
    int start = position();
    boolean isInteger = skipNumber();
    String number = textFrom(start);
    // Zero has no sign.
    if (!isInteger || number.equals("-0")) {
      throw new JsonException();
    }
    try {
      return Long.parseLong(number);
    } catch (NumberFormatException e) {
      throw new JsonException();
    }
  }

  private String literal() throws JsonException {
    for (String word : new String[] {"true", "false", "null"}) {
      int end = at + word.length();
      if (end <= text.length
          && new String(text, at, word.length(), StandardCharsets.ISO_8859_1).equals(word)) {
        at = end;
        return word;
      }
    }
    throw new JsonException();
  }

  void expectNull() throws JsonException {
    peek();
    if (!literal().equals("null")) {
      throw new JsonException();
    }
  }

  /**
   * Reads any value, and checks that no object in it has two members of one name, that its numbers
   * are in the range of doubles, and that it is not nested too deeply.
   */
  void check(int depth) throws JsonException {
    switch (peek()) {
      case '{' -> {
        checkDepth(depth);
        Set<String> names = new HashSet<>();
        for (boolean more = begin('{', '}'); more; more = more('}')) {
          if (!names.add(name())) {
            throw new JsonException();
          }
          check(depth + 1);
        }
      }
      case '[' -> {
        checkDepth(depth);
        for (boolean more = begin('[', ']'); more; more = more(']')) {
          check(depth + 1);
        }
      }
      case '"' -> string();
      case 't', 'f', 'n' -> literal();
      default -> {
        int start = at;
        skipNumber();
        if (Double.isInfinite(Double.parseDouble(textFrom(start)))) {
          throw new JsonException();
        }
      }
    }
  }

  private static void checkDepth(int depth) throws JsonException {
    if (depth == MAX_DEPTH) {
      throw new JsonException();
    }
  }

  /** Reads a value that was checked: texts, numbers, booleans, null, lists and maps. */
  Object decode() throws JsonException {
    switch (peek()) {
      case '{' -> {
        Map<String, Object> members = new LinkedHashMap<>();
        for (boolean more = begin('{', '}'); more; more = more('}')) {
          members.put(name(), decode());
        }
        return members;
      }
      case '[' -> {
        List<Object> elements = new ArrayList<>();
        for (boolean more = begin('[', ']'); more; more = more(']')) {
          elements.add(decode());
        }
        return elements;
      }
      case '"' -> {
        return string();
      }
      case 't', 'f', 'n' -> {
        String word = literal();
        return word.equals("null") ? null : (Object) word.equals("true");
      }
      default -> {
        int start = at;
        boolean isInteger = skipNumber();
        return number(textFrom(start), isInteger);
      }
    }
  }

  private static Object number(String number, boolean isInteger) {
    if (isInteger && !number.equals("-0")) {
      BigInteger whole = new BigInteger(number);
      if (whole.bitLength() < Long.SIZE) {
        return whole.longValue();
      }
      if (whole.signum() > 0 && whole.bitLength() == Long.SIZE) {
        return whole;
      }
    }
    return Double.valueOf(number);
  }

  /**
   * Reads any value, and checks only its syntax, except that escapes of half a character pass. It
   * needs no stack, so the value may be nested to any depth.
   */
  void ignore() throws JsonException {
    ArrayDeque<Character> open = new ArrayDeque<>();
    while (true) {
      int next = peek();
      boolean isEmpty = false;
      switch (next) {
        case '{', '[' -> {
          at++;
          char close = (char) (next + 2); // The closing brackets are two characters later.
          isEmpty = take(close);
          if (!isEmpty) {
            open.push(close);
            if (close == '}') {
              ignoreName();
            }
            continue;
          }
        }
        case '"' -> ignoreString();
        case 't', 'f', 'n' -> literal();
        default -> skipNumber();
      }
      // A value has ended.
      while (true) {
        if (open.isEmpty()) {
          return;
        }
        char close = open.element();
        if (take(close)) {
          open.pop();
          continue;
        }
        expect(',');
        if (close == '}') {
          ignoreName();
        }
        break;
      }
    }
  }

  private void ignoreName() throws JsonException {
    ignoreString();
    expect(':');
  }

  private void ignoreString() throws JsonException {
    expect('"');
    while (at < text.length) {
      byte next = text[at++];
      if (next == '"') {
        return;
      }
      if (next >= 0 && next < ' ') {
        throw new JsonException();
      }
      if (next == '\\') {
        if (at == text.length) {
          throw new JsonException();
        }
        switch (text[at++]) {
          case '"', '\\', '/', 'b', 'f', 'n', 'r', 't' -> {}
          case 'u' -> hex();
          default -> throw new JsonException();
        }
      }
    }
    throw new JsonException();
  }
}

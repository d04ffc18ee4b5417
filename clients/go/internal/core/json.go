package core

import (
	"errors"
	"math"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
)

// The standard library accepts two members of one name, takes names in upper or lower case as the
// same, and replaces text that is not valid. Two programs could understand such a token
// differently, so tokens are parsed here: strictly, and in one pass.

var errJSON = errors.New("the text is not the JSON that is expected")

// maxDepth is the largest number of arrays and objects in each other in the value of a claim.
const maxDepth = 127

// parser reads JSON (RFC 8259) from a text that is valid UTF-8.
type parser struct {
	text []byte
	at   int
}

// object reads an object. It calls member with each name, when the parser is at the value.
func (p *parser) object(member func(name string) error) error {
	if !p.take('{') {
		return errJSON
	}
	if p.take('}') {
		return nil
	}
	for {
		name, err := p.string()
		if err != nil {
			return err
		}
		if !p.take(':') {
			return errJSON
		}
		if err := member(name); err != nil {
			return err
		}
		if p.take('}') {
			return nil
		}
		if !p.take(',') {
			return errJSON
		}
	}
}

// array reads an array. It calls element when the parser is at an element.
func (p *parser) array(element func() error) error {
	if !p.take('[') {
		return errJSON
	}
	if p.take(']') {
		return nil
	}
	for {
		if err := element(); err != nil {
			return err
		}
		if p.take(']') {
			return nil
		}
		if !p.take(',') {
			return errJSON
		}
	}
}

// end returns an error unless only white space is left.
func (p *parser) end() error {
	if p.peek() != 0 || p.at < len(p.text) {
		return errJSON
	}
	return nil
}

// peek skips white space, and returns the next byte, or 0 at the end.
func (p *parser) peek() byte {
	for p.at < len(p.text) {
		switch next := p.text[p.at]; next {
		case ' ', '\t', '\n', '\r':
			p.at++
		default:
			return next
		}
	}
	return 0
}

// take skips white space, and reads a byte if it is the next one.
func (p *parser) take(expected byte) bool {
	if p.peek() != expected || p.at == len(p.text) {
		return false
	}
	p.at++
	return true
}

// string reads a string.
func (p *parser) string() (string, error) {
	if !p.take('"') {
		return "", errJSON
	}
	start := p.at
	for p.at < len(p.text) {
		switch next := p.text[p.at]; {
		case next == '"':
			p.at++
			return string(p.text[start : p.at-1]), nil
		case next == '\\':
			return p.escaped(append([]byte(nil), p.text[start:p.at]...))
		case next < ' ':
			return "", errJSON
		default:
			p.at++
		}
	}
	return "", errJSON
}

// escaped reads the rest of a string, from its first escape.
func (p *parser) escaped(text []byte) (string, error) {
	for p.at < len(p.text) {
		next := p.text[p.at]
		p.at++
		switch {
		case next == '"':
			return string(text), nil
		case next < ' ':
			return "", errJSON
		case next != '\\':
			text = append(text, next)
		default:
			char, err := p.escape()
			if err != nil {
				return "", err
			}
			text = utf8.AppendRune(text, char)
		}
	}
	return "", errJSON
}

// escape reads what follows a backslash. Half a surrogate pair is not a character.
func (p *parser) escape() (rune, error) {
	if p.at == len(p.text) {
		return 0, errJSON
	}
	kind := p.text[p.at]
	p.at++
	switch kind {
	case '"', '\\', '/':
		return rune(kind), nil
	case 'b':
		return '\b', nil
	case 'f':
		return '\f', nil
	case 'n':
		return '\n', nil
	case 'r':
		return '\r', nil
	case 't':
		return '\t', nil
	case 'u':
	default:
		return 0, errJSON
	}
	first, err := p.hex()
	if err != nil || !utf16.IsSurrogate(first) {
		return first, err
	}
	if p.at+2 > len(p.text) || p.text[p.at] != '\\' || p.text[p.at+1] != 'u' {
		return 0, errJSON
	}
	p.at += 2
	second, err := p.hex()
	if err != nil {
		return 0, err
	}
	char := utf16.DecodeRune(first, second)
	if char == utf8.RuneError {
		return 0, errJSON
	}
	return char, nil
}

func (p *parser) hex() (rune, error) {
	if p.at+4 > len(p.text) {
		return 0, errJSON
	}
	var number rune
	for _, digit := range p.text[p.at : p.at+4] {
		switch {
		case digit >= '0' && digit <= '9':
			digit -= '0'
		case digit >= 'a' && digit <= 'f':
			digit -= 'a' - 10
		case digit >= 'A' && digit <= 'F':
			digit -= 'A' - 10
		default:
			return 0, errJSON
		}
		number = number<<4 | rune(digit)
	}
	p.at += 4
	return number, nil
}

// number reads the text of a number. It is an integer if it has neither a fraction nor an exponent.
func (p *parser) number() (text string, isInteger bool, err error) {
	p.peek()
	start := p.at
	p.skip('-')
	if !p.skip('0') && p.digits() == 0 {
		return "", false, errJSON
	}
	isInteger = true
	if p.skip('.') {
		isInteger = false
		if p.digits() == 0 {
			return "", false, errJSON
		}
	}
	if p.skip('e') || p.skip('E') {
		isInteger = false
		_ = p.skip('+') || p.skip('-')
		if p.digits() == 0 {
			return "", false, errJSON
		}
	}
	return string(p.text[start:p.at]), isInteger, nil
}

// skip reads a byte if it is the next one.
func (p *parser) skip(expected byte) bool {
	if p.at < len(p.text) && p.text[p.at] == expected {
		p.at++
		return true
	}
	return false
}

func (p *parser) digits() int {
	start := p.at
	for p.at < len(p.text) && p.text[p.at] >= '0' && p.text[p.at] <= '9' {
		p.at++
	}
	return p.at - start
}

// integer reads a whole number that is written without a fraction and without an exponent.
func (p *parser) integer() (int64, error) {
	text, isInteger, err := p.number()
	// Zero has no sign.
	if err != nil || !isInteger || text == "-0" {
		return 0, errJSON
	}
	return strconv.ParseInt(text, 10, 64)
}

func (p *parser) literal() error {
	for _, word := range [...]string{"true", "false", "null"} {
		if p.at+len(word) <= len(p.text) && string(p.text[p.at:p.at+len(word)]) == word {
			p.at += len(word)
			return nil
		}
	}
	return errJSON
}

// value reads any value, and checks that no object in it has two members of one name, that its
// numbers are in the range of doubles, and that it is not nested too deeply.
func (p *parser) value(depth int) error {
	switch p.peek() {
	case '{':
		if depth == maxDepth {
			return errJSON
		}
		names := map[string]struct{}{}
		return p.object(func(name string) error {
			if _, isKnown := names[name]; isKnown {
				return errJSON
			}
			names[name] = struct{}{}
			return p.value(depth + 1)
		})
	case '[':
		if depth == maxDepth {
			return errJSON
		}
		return p.array(func() error { return p.value(depth + 1) })
	case '"':
		_, err := p.string()
		return err
	case 't', 'f', 'n':
		return p.literal()
	default:
		text, _, err := p.number()
		if err != nil {
			return err
		}
		number, err := strconv.ParseFloat(text, 64)
		if err != nil || math.IsInf(number, 0) {
			return errJSON
		}
		return nil
	}
}

// ignore reads any value, and checks only its syntax, except that escapes of half a character pass.
// It needs no stack, so the value may be nested to any depth.
func (p *parser) ignore() error {
	var open []byte
	for {
		next := p.peek()
		switch next {
		case '{', '[':
			p.at++
			open = append(open, next)
			if p.take(next + 2) { // The closing brackets are two characters after the opening ones.
				open = open[:len(open)-1]
				break
			}
			if next == '{' {
				if err := p.ignoreName(); err != nil {
					return err
				}
			}
			continue
		case '"':
			if err := p.ignoreString(); err != nil {
				return err
			}
		case 't', 'f', 'n':
			if err := p.literal(); err != nil {
				return err
			}
		default:
			if _, _, err := p.number(); err != nil {
				return err
			}
		}
		// A value has ended.
		for {
			if len(open) == 0 {
				return nil
			}
			last := open[len(open)-1]
			if p.take(last + 2) {
				open = open[:len(open)-1]
				continue
			}
			if !p.take(',') {
				return errJSON
			}
			if last == '{' {
				if err := p.ignoreName(); err != nil {
					return err
				}
			}
			break
		}
	}
}

func (p *parser) ignoreName() error {
	if err := p.ignoreString(); err != nil {
		return err
	}
	if !p.take(':') {
		return errJSON
	}
	return nil
}

func (p *parser) ignoreString() error {
	if !p.take('"') {
		return errJSON
	}
	for p.at < len(p.text) {
		next := p.text[p.at]
		p.at++
		switch {
		case next == '"':
			return nil
		case next < ' ':
			return errJSON
		case next == '\\':
			if p.at == len(p.text) {
				return errJSON
			}
			kind := p.text[p.at]
			p.at++
			switch kind {
			case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
			case 'u':
				if _, err := p.hex(); err != nil {
					return err
				}
			default:
				return errJSON
			}
		}
	}
	return errJSON
}

package wal

import (
	"bytes"
	"errors"
	"fmt"
	"math/bits"
	"strconv"
	"unicode/utf8"
)

// Strict JSON as RFC 7493 (I-JSON) has it: valid UTF-8, no duplicate names, no lone surrogates, numbers within a
// double's range, and a bound on depth. encoding/json lets all of that through or repairs it in silence; what goes into
// the log has to read the same in every language that will ever read it.

// maxDepth is how deep arrays and objects may nest in one payload. The ancestor's reader stops at 128.
const maxDepth = 100

// jsonScanner checks JSON without decoding it. It is reused to keep the names' memory.
type jsonScanner struct {
	src    []byte
	spaces int    // bytes of white space that were met between tokens
	names  []span // of the objects that are open, innermost last
	spare  map[string]struct{}
}

type span struct{ from, to int }

// check reports whether src is one strict JSON value, and whether it is free of white space between its tokens.
func (s *jsonScanner) check(src []byte) (compact bool, err error) {
	s.src, s.spaces, s.names = src, 0, s.names[:0]
	i, err := s.value(s.space(0), 1)
	if err != nil {
		return false, err
	}
	if i = s.space(i); i != len(src) {
		return false, s.fail(i, "something follows the value")
	}
	return s.spaces == 0, nil
}

func (s *jsonScanner) fail(at int, format string, args ...any) error {
	return fmt.Errorf("not strict JSON at byte %d: %s", at, fmt.Sprintf(format, args...))
}

func (s *jsonScanner) space(i int) int {
	for i < len(s.src) && isSpace(s.src[i]) {
		s.spaces++
		i++
	}
	return i
}

func isSpace(c byte) bool { return c == ' ' || c == '\n' || c == '\t' || c == '\r' }

// value checks the value that starts at i and returns the index behind it.
func (s *jsonScanner) value(i, depth int) (int, error) {
	if i >= len(s.src) {
		return i, s.fail(i, "unexpected end")
	}
	switch c := s.src[i]; {
	case c == '"':
		return s.text(i)
	case c == '{':
		return s.object(i, depth)
	case c == '[':
		return s.array(i, depth)
	case c == '-' || isDigit(c):
		return s.number(i)
	case c == 't':
		return s.literal(i, "true")
	case c == 'f':
		return s.literal(i, "false")
	case c == 'n':
		return s.literal(i, "null")
	default:
		return i, s.fail(i, "unexpected %q", c)
	}
}

func (s *jsonScanner) literal(i int, word string) (int, error) {
	if !bytes.HasPrefix(s.src[i:], []byte(word)) {
		return i, s.fail(i, "not %s", word)
	}
	return i + len(word), nil
}

func (s *jsonScanner) array(i, depth int) (int, error) {
	if depth > maxDepth {
		return i, s.fail(i, "nested deeper than %d", maxDepth)
	}
	i = s.space(i + 1)
	if i < len(s.src) && s.src[i] == ']' {
		return i + 1, nil
	}
	for {
		var err error
		if i, err = s.value(i, depth+1); err != nil {
			return i, err
		}
		if i = s.space(i); i >= len(s.src) {
			return i, s.fail(i, "unexpected end of array")
		}
		switch s.src[i] {
		case ']':
			return i + 1, nil
		case ',':
			i = s.space(i + 1)
		default:
			return i, s.fail(i, "unexpected %q in array", s.src[i])
		}
	}
}

func (s *jsonScanner) object(i, depth int) (int, error) {
	if depth > maxDepth {
		return i, s.fail(i, "nested deeper than %d", maxDepth)
	}
	names := nameSet{scanner: s, first: len(s.names)}
	defer names.close()
	i = s.space(i + 1)
	if i < len(s.src) && s.src[i] == '}' {
		return i + 1, nil
	}
	for {
		end, err := s.member(i, depth, &names)
		if err != nil {
			return end, err
		}
		if i = s.space(end); i >= len(s.src) {
			return i, s.fail(i, "unexpected end of object")
		}
		switch s.src[i] {
		case '}':
			return i + 1, nil
		case ',':
			i = s.space(i + 1)
		default:
			return i, s.fail(i, "unexpected %q in object", s.src[i])
		}
	}
}

// member checks one "name":value.
func (s *jsonScanner) member(i, depth int, names *nameSet) (int, error) {
	if i >= len(s.src) || s.src[i] != '"' {
		return i, s.fail(i, "a name is missing")
	}
	end, err := s.text(i)
	if err != nil {
		return end, err
	}
	if !names.add(span{i, end}) {
		return i, s.fail(i, "duplicate name %.64q", s.unquoted(span{i, end}))
	}
	if i = s.space(end); i >= len(s.src) || s.src[i] != ':' {
		return i, s.fail(i, "a colon is missing")
	}
	return s.value(s.space(i+1), depth+1)
}

// nameSet is the names of one object: compared one by one while they are few, by a map from then on, so that a
// hostile object of a million names costs no more than its length.
type nameSet struct {
	scanner *jsonScanner
	first   int // index of this object's first name in scanner.names
	seen    map[string]struct{}
}

const fewNames = 16

func (n *nameSet) add(name span) bool {
	if n.seen != nil {
		return n.addSeen(name)
	}
	s := n.scanner
	for _, other := range s.names[n.first:] {
		if s.sameText(name, other) {
			return false
		}
	}
	s.names = append(s.names, name)
	if len(s.names)-n.first == fewNames {
		if n.seen, s.spare = s.spare, nil; n.seen == nil {
			n.seen = make(map[string]struct{}, 2*fewNames)
		}
		for _, other := range s.names[n.first:] {
			n.addSeen(other)
		}
	}
	return true
}

// close leaves a small map to the next object that needs one: there may be many in a row.
func (n *nameSet) close() {
	s := n.scanner
	s.names = s.names[:n.first]
	if n.seen != nil && len(n.seen) <= 4*fewNames {
		clear(n.seen)
		s.spare = n.seen
	}
}

func (n *nameSet) addSeen(name span) bool {
	key := n.scanner.unquoted(name)
	if _, dup := n.seen[string(key)]; dup {
		return false
	}
	n.seen[string(key)] = struct{}{}
	return true
}

func (s *jsonScanner) sameText(a, b span) bool {
	return bytes.Equal(s.unquoted(a), s.unquoted(b))
}

// unquoted is what a name means; the name's own bytes, where they are that.
func (s *jsonScanner) unquoted(name span) []byte {
	inside := s.src[name.from+1 : name.to-1]
	if bytes.IndexByte(inside, '\\') < 0 {
		return inside
	}
	return appendUnquoted(nil, inside)
}

// text checks the string whose opening quote is at i.
func (s *jsonScanner) text(i int) (int, error) {
	end, _, err := scanText(s.src, i)
	if err != nil {
		return end, s.fail(end, "%v", err)
	}
	return end, nil
}

var (
	errTextEnd       = errors.New("string without an end")
	errTextControl   = errors.New("control character in a string")
	errTextUTF8      = errors.New("invalid UTF-8")
	errTextEscape    = errors.New("invalid escape")
	errTextSurrogate = errors.New("lone surrogate")
)

// scanText checks the string whose opening quote is at i, and returns the index behind its closing quote and whether
// it holds escapes.
func scanText(src []byte, i int) (end int, escaped bool, err error) {
	i++
	for i < len(src) {
		i += plain(src[i:])
		if i == len(src) {
			break
		}
		switch c := src[i]; {
		case c == '"':
			return i + 1, escaped, nil
		case c == '\\':
			n, err := scanEscape(src[i:])
			if err != nil {
				return i, true, err
			}
			escaped = true
			i += n
		case c < 0x20:
			return i, escaped, errTextControl
		case c < utf8.RuneSelf:
			i++
		default:
			_, n := utf8.DecodeRune(src[i:])
			if n == 1 {
				return i, escaped, errTextUTF8
			}
			i += n
		}
	}
	return i, escaped, errTextEnd
}

// scanEscape returns the length of the escape (for a surrogate pair: of both) that src starts with.
func scanEscape(src []byte) (int, error) {
	if len(src) < 2 {
		return 0, errTextEnd
	}
	if bytes.IndexByte([]byte(`"\/bfnrt`), src[1]) >= 0 {
		return 2, nil
	}
	hi, ok := hex4(src)
	switch {
	case !ok:
		return 0, errTextEscape
	case hi < 0xD800 || hi > 0xDFFF:
		return 6, nil
	case hi > 0xDBFF:
		return 0, errTextSurrogate
	}
	if lo, ok := hex4(src[6:]); !ok || lo < 0xDC00 || lo > 0xDFFF {
		return 0, errTextSurrogate
	}
	return 12, nil
}

// hex4 reads \uXXXX.
func hex4(src []byte) (rune, bool) {
	if len(src) < 6 || src[0] != '\\' || src[1] != 'u' {
		return 0, false
	}
	var r rune
	for _, c := range src[2:6] {
		switch {
		case isDigit(c):
			r = r<<4 | rune(c-'0')
		case c >= 'a' && c <= 'f':
			r = r<<4 | rune(c-'a'+10)
		case c >= 'A' && c <= 'F':
			r = r<<4 | rune(c-'A'+10)
		default:
			return 0, false
		}
	}
	return r, true
}

// appendUnquoted appends what the inside of a checked string means.
func appendUnquoted(dst, src []byte) []byte {
	for len(src) > 0 {
		i := bytes.IndexByte(src, '\\')
		if i < 0 {
			return append(dst, src...)
		}
		dst = append(dst, src[:i]...)
		src = src[i:]
		if r, ok := hex4(src); ok {
			src = src[6:]
			if r >= 0xD800 && r <= 0xDBFF {
				lo, _ := hex4(src)
				src = src[6:]
				r = (r-0xD800)<<10 | (lo - 0xDC00) + 0x10000
			}
			dst = utf8.AppendRune(dst, r)
			continue
		}
		dst = append(dst, unescape(src[1]))
		src = src[2:]
	}
	return dst
}

func unescape(c byte) byte {
	switch c {
	case 'b':
		return '\b'
	case 'f':
		return '\f'
	case 'n':
		return '\n'
	case 'r':
		return '\r'
	case 't':
		return '\t'
	}
	return c // one of " \ /
}

const hexDigits = "0123456789abcdef"

// appendQuoted appends s, which is valid UTF-8, as a JSON string in the one spelling that the writer uses.
func appendQuoted(dst []byte, s string) []byte {
	dst = append(dst, '"')
	from := 0
	for i := plain(s); i < len(s); i++ {
		c := s[i]
		if c >= 0x20 && c != '"' && c != '\\' {
			continue
		}
		dst = append(dst, s[from:i]...)
		from = i + 1
		switch c {
		case '"', '\\':
			dst = append(dst, '\\', c)
		case '\b':
			dst = append(dst, '\\', 'b')
		case '\f':
			dst = append(dst, '\\', 'f')
		case '\n':
			dst = append(dst, '\\', 'n')
		case '\r':
			dst = append(dst, '\\', 'r')
		case '\t':
			dst = append(dst, '\\', 't')
		default:
			dst = append(dst, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
		}
	}
	return append(append(dst, s[from:]...), '"')
}

// plain is how many bytes s begins with that are ASCII and stand for themselves inside a JSON string: eight at a time, each
// compared in a byte's place of one number (Lamport, Multiple Byte Processing with Full-Word Instructions, 1975).
func plain[T string | []byte](s T) int {
	const ones, high = 0x0101010101010101, 0x8080808080808080
	i := 0
	for ; i+8 <= len(s); i += 8 {
		x := uint64(s[i]) | uint64(s[i+1])<<8 | uint64(s[i+2])<<16 | uint64(s[i+3])<<24 |
			uint64(s[i+4])<<32 | uint64(s[i+5])<<40 | uint64(s[i+6])<<48 | uint64(s[i+7])<<56
		quote, slash := x^ones*'"', x^ones*'\\'
		special := x | (x-ones*' ')&^x | (quote-ones)&^quote | (slash-ones)&^slash
		if special &= high; special != 0 {
			return i + bits.TrailingZeros64(special)/8 // of what a borrow marks wrongly, nothing lies below the first
		}
	}
	for ; i < len(s); i++ {
		if c := s[i]; c < ' ' || c == '"' || c == '\\' || c >= utf8.RuneSelf {
			break
		}
	}
	return i
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }

func (s *jsonScanner) number(i int) (int, error) {
	from, exact := i, true
	if s.src[i] == '-' {
		i++
	}
	digits := s.digits(i)
	if digits == i || digits > i+1 && s.src[i] == '0' {
		return i, s.fail(from, "malformed number")
	}
	i = digits
	if i < len(s.src) && s.src[i] == '.' {
		if digits = s.digits(i + 1); digits == i+1 {
			return i, s.fail(from, "malformed number")
		}
		i = digits
	}
	if i < len(s.src) && s.src[i]|0x20 == 'e' {
		i++
		exact = false
		if i < len(s.src) && (s.src[i] == '+' || s.src[i] == '-') {
			i++
		}
		if digits = s.digits(i); digits == i {
			return i, s.fail(from, "malformed number")
		}
		i = digits
	}
	// 10^307 and less needs no look at its value.
	if (!exact || i-from > 307) && !withinDouble(s.src[from:i]) {
		return i, s.fail(from, "number beyond the range of a double")
	}
	return i, nil
}

func withinDouble(number []byte) bool {
	_, err := strconv.ParseFloat(string(number), 64)
	return err == nil
}

func (s *jsonScanner) digits(i int) int {
	for i < len(s.src) && isDigit(s.src[i]) {
		i++
	}
	return i
}

// appendCompact appends checked JSON without the white space between its tokens. Nothing else is changed.
func appendCompact(dst, src []byte) []byte {
	inText := false
	for i := 0; i < len(src); i++ {
		c := src[i]
		switch {
		case inText && c == '\\':
			dst = append(dst, c)
			i++
			c = src[i]
		case c == '"':
			inText = !inText
		case !inText && isSpace(c):
			continue
		}
		dst = append(dst, c)
	}
	return dst
}

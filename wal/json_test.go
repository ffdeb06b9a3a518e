package wal

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func nested(open, shut string, depth int) string {
	return strings.Repeat(open, depth) + strings.Repeat(shut, depth)
}

var strictJSON = []struct{ name, in string }{
	{"null", `null`},
	{"true", `true`},
	{"false", `false`},
	{"empty string", `""`},
	{"empty object", `{}`},
	{"empty array", `[]`},
	{"empty name", `{"":1}`},
	{"every form of white space", " \t\r\n{ \"a\" :\t[ 1 ,\r\n2 ] } \n"},
	{"every escape", `"\"\\\/\b\f\n\r\t\u00e9\u2028"`},
	{"escaped NUL", `"\u0000"`},
	{"escaped control characters", `"\u001f\u007f"`},
	{"DEL and C1 as they are", "\"\x7f\u0085\""},
	{"line separators as they are", "\"\u2028\u2029\""},
	{"HTML", `"<b>&amp;</b>"`},
	{"surrogate pair", `"\ud83d\ude80"`},
	{"surrogate pair in capitals", `"\uD83D\uDE80"`},
	{"two surrogate pairs", `"\ud83d\ude80\ud83d\ude80"`},
	{"four-byte rune", `"🚀"`},
	{"noncharacter", "\"\uffff\U0010ffff\""},
	{"replacement character that was meant", "\"\ufffd\""},
	{"zero", `0`},
	{"minus zero", `-0`},
	{"fraction", `-12.50`},
	{"exponents", `[1e5,1E5,1e+5,1E-5,0e0,0.0e-0]`},
	{"25 digits", `1234567890123456789012345`},
	{"309 digits, within a double", "1" + strings.Repeat("0", 308)},
	{"309 digits behind a minus", "-1" + strings.Repeat("7", 308)},
	{"largest double", `1.7976931348623157e308`},
	{"smaller than any double", `1e-400`},
	{"zero with an exponent beyond all", `0e99999999999999999999`},
	{"a thousand digits behind the point", "0." + strings.Repeat("3", 1000)},
	{"leading zeros in an exponent", `1e007`},
	{"same name in different objects", `{"a":{"a":[{"a":1},{"a":2}]}}`},
	{"names that differ in case", `{"type":1,"Type":2,"TYPE":3}`},
	{"names that differ in normalization", "{\"e\u0301\":1,\"\u00e9\":2}"},
	{"names that differ by an escaped NUL", `{"a":1,"a\u0000":2}`},
	{"arrays 100 deep", nested("[", "]", 100)},
	{"objects 100 deep", strings.Repeat(`{"a":`, 99) + "{}" + strings.Repeat("}", 99)},
	{"a scalar in the 100th", strings.Repeat("[", 100) + "1" + strings.Repeat("]", 100)},
}

var notStrictJSON = []struct{ name, in, reason string }{
	{"nothing", ``, "unexpected end"},
	{"white space only", " \n", "unexpected end"},
	{"two values", `1 2`, "something follows"},
	{"comma behind the value", `{},`, "something follows"},
	{"BOM", "\ufeff{}", "unexpected"},
	{"raw NUL behind the value", "{}\x00", "something follows"},
	{"raw NUL between tokens", "[\x001]", "unexpected"},
	{"raw NUL in a string", "\"a\x00\"", "control character"},
	{"raw newline in a string", "\"a\nb\"", "control character"},
	{"raw tab in a string", "\"a\tb\"", "control character"},
	{"form feed as white space", "\f1", "unexpected"},
	{"no-break space as white space", "\u00a01", "unexpected"},
	{"string without an end", `"abc`, "without an end"},
	{"string that ends in a backslash", `"abc\`, "without an end"},
	{"string that ends inside an escape", `"\u12`, "invalid escape"},
	{"unknown escape", `"\x41"`, "invalid escape"},
	{"escape with a capital U", `"\U0041"`, "invalid escape"},
	{"escape that is not hex", `"\u00g0"`, "invalid escape"},
	{"single quotes", `'a'`, "unexpected"},
	{"high surrogate alone", `"\ud83d"`, "surrogate"},
	{"high surrogate before a letter", `"\ud83dx"`, "surrogate"},
	{"high surrogate before another escape", `"\ud83d\n"`, "surrogate"},
	{"two high surrogates", `"\ud83d\ud83d"`, "surrogate"},
	{"low surrogate alone", `"\ude80"`, "surrogate"},
	{"pair the wrong way round", `"\ude80\ud83d"`, "surrogate"},
	{"lone surrogate in a name", `{"\ud800":1}`, "surrogate"},
	{"surrogate in raw UTF-8", "\"\xed\xa0\x80\"", "UTF-8"},
	{"lone continuation byte", "\"\x80\"", "UTF-8"},
	{"cut rune", "\"\xc3\"", "UTF-8"},
	{"rune cut by the end", "\"\xf0\x9f\x9a", "UTF-8"},
	{"overlong slash", "\"\xc0\xaf\"", "UTF-8"},
	{"overlong NUL", "\"\xc0\x80\"", "UTF-8"},
	{"overlong in three bytes", "\"\xe0\x80\xaf\"", "UTF-8"},
	{"beyond U+10FFFF", "\"\xf4\x90\x80\x80\"", "UTF-8"},
	{"bad UTF-8 in a name", "{\"\xff\":1}", "UTF-8"},
	{"leading zero", `01`, "malformed number"},
	{"leading zero behind a minus", `-01`, "malformed number"},
	{"minus alone", `-`, "malformed number"},
	{"plus", `+1`, "unexpected"},
	{"point without digits behind it", `1.`, "malformed number"},
	{"point without digits before it", `.5`, "unexpected"},
	{"exponent without digits", `1e`, "malformed number"},
	{"exponent with a sign only", `1e+`, "malformed number"},
	{"hexadecimal", `0x10`, "something follows"},
	{"NaN", `NaN`, "unexpected"},
	{"Infinity", `-Infinity`, "malformed number"},
	{"1e400", `1e400`, "range of a double"},
	{"-1e309", `-1e309`, "range of a double"},
	{"309 digits, beyond a double", strings.Repeat("9", 309), "range of a double"},
	{"310 digits", "1" + strings.Repeat("0", 309), "range of a double"},
	{"large by its digits before the point", strings.Repeat("9", 400) + ".5", "range of a double"},
	{"1e400 deep inside", `{"a":[{"b":1e400}]}`, "range of a double"},
	{"word cut short", `tru`, "not true"},
	{"word in capitals", `True`, "unexpected"},
	{"word with a tail", `nullx`, "something follows"},
	{"duplicate names", `{"a":1,"a":2}`, "duplicate name"},
	{"duplicate names, one escaped", `{"a":1,"\u0061":2}`, "duplicate name"},
	{"duplicate names, escaped differently", `{"\/":1,"\u002f":2}`, "duplicate name"},
	{"duplicate names, a pair against the rune", `{"🚀":1,"\ud83d\ude80":2}`, "duplicate name"},
	{"duplicate empty names", `{"":1,"":2}`, "duplicate name"},
	{"duplicate names further in", `[{"x":{"a":1,"b":{},"a":2}}]`, "duplicate name"},
	{"name without a colon", `{"a"}`, "colon"},
	{"name that is no string", `{1:2}`, "name is missing"},
	{"comma at an object's end", `{"a":1,}`, "name is missing"},
	{"comma at an array's end", `[1,]`, "unexpected"},
	{"comma at an array's start", `[,1]`, "unexpected"},
	{"missing comma", `[1 2]`, "unexpected"},
	{"colon in an array", `[1:2]`, "unexpected"},
	{"array without an end", `[1`, "unexpected end of array"},
	{"object without an end", `{"a":1`, "unexpected end of object"},
	{"object that ends behind a colon", `{"a":`, "unexpected end"},
	{"shut by the wrong bracket", `[1}`, "unexpected"},
	{"comment", `[1/*2*/]`, "unexpected"},
	{"arrays 101 deep", nested("[", "]", 101), "deeper than 100"},
	{"objects 101 deep", strings.Repeat(`{"a":`, 100) + "{}" + strings.Repeat("}", 100), "deeper than 100"},
	{"100,000 deep", nested("[", "]", 100_000), "deeper than 100"},
	{"100,000 deep without an end", strings.Repeat("[", 100_000), "deeper than 100"},
}

func TestStrictJSON(t *testing.T) {
	var s jsonScanner
	for _, c := range strictJSON {
		t.Run("takes "+c.name, func(t *testing.T) {
			compact, err := s.check([]byte(c.in))
			require.NoError(t, err)
			require.Equal(t, string(compactByStdlib(t, c.in)) == c.in, compact)
		})
	}
	for _, c := range notStrictJSON {
		t.Run("refuses "+c.name, func(t *testing.T) {
			_, err := s.check([]byte(c.in))
			require.ErrorContains(t, err, c.reason)
		})
	}
}

// The names of one object are kept one way while they are few, and another from then on: duplicates have to be seen on
// both sides of that border and across it.
func TestStrictJSON_duplicates_among_many_names(t *testing.T) {
	var s jsonScanner
	for n := 1; n <= 3*fewNames; n++ {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, `"name%d":{"name%d":0},`, i, i)
		}
		_, err := s.check([]byte("{" + strings.TrimSuffix(b.String(), ",") + "}"))
		require.NoError(t, err, "%d names", n)
		for dup := range n {
			_, err := s.check(fmt.Appendf(nil, `{%s"n\u0061me%d":1}`, b.String(), dup))
			require.ErrorContains(t, err, "duplicate name", "name %d of %d again", dup, n)
		}
	}
}

// Were names compared each with each, this would take hours.
func TestStrictJSON_a_million_names(t *testing.T) {
	t.Parallel()
	object := []byte("{")
	for i := range 1_000_000 {
		object = strconv.AppendInt(append(object, `"n`...), int64(i), 10)
		object = append(object, `":0,`...)
	}
	var s jsonScanner
	_, err := s.check(append(object, `"n":0}`...))
	require.NoError(t, err)
}

// A scanner is reused: what an earlier value left in it must not show.
func TestStrictJSON_scanner_forgets(t *testing.T) {
	var s jsonScanner
	for range 3 {
		_, err := s.check([]byte(`{"a":{"b":{"c":[1 ,}`))
		require.Error(t, err)
		compact, err := s.check([]byte(`{"a":1,"b":2,"c":3}`))
		require.NoError(t, err)
		require.True(t, compact)
	}
}

func TestCompact_drops_white_space_and_nothing_else(t *testing.T) {
	for _, c := range strictJSON {
		t.Run(c.name, func(t *testing.T) {
			require.Equal(t, string(compactByStdlib(t, c.in)), string(appendCompact(nil, []byte(c.in))))
		})
	}
	require.Equal(t, `{"a b":" \" \\","<&>":1234567890123456789012345}`,
		string(appendCompact(nil, []byte(" { \"a b\" : \" \\\" \\\\\" ,\n\"<&>\":\t1234567890123456789012345 } "))))
}

func TestQuote_has_one_spelling(t *testing.T) {
	for in, want := range map[string]string{
		"":                         `""`,
		"a/b":                      `"a/b"`,
		"<>&\u2028\u2029é🚀\x7f":    "\"<>&\u2028\u2029é🚀\x7f\"",
		`"\`:                       `"\"\\"`,
		"\b\f\n\r\t\x00\x01\x1f|":  `"\b\f\n\r\t\u0000\u0001\u001f|"`,
		"\n\nabc\n":                `"\n\nabc\n"`,
		strings.Repeat("é\"", 300): `"` + strings.Repeat(`é\"`, 300) + `"`,
	} {
		got := appendQuoted(nil, in)
		require.Equal(t, want, string(got))
		require.Equal(t, in, string(appendUnquoted(nil, got[1:len(got)-1])))
		var std string
		require.NoError(t, json.Unmarshal(got, &std))
		require.Equal(t, in, std)
	}
}

func compactByStdlib(t testing.TB, in string) []byte {
	t.Helper()
	var b bytes.Buffer
	require.NoError(t, json.Compact(&b, []byte(in)))
	return b.Bytes()
}

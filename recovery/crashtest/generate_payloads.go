package crashtest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"pgregory.net/rapid"
)

// maxDepth is how deep arrays and objects may nest.
const maxDepth = 100

// Payloads draws args and outputs that the log takes: strict JSON (RFC 7493), of every kind that some reader gets wrong.
// Unicode in all its spellings, numbers at a double's limits, strings that look like lines of the log, nesting up to a
// depth of 100, objects of many names, white space, null, and sizes from one byte to, rarely, 100 KiB. None is empty: that
// is no payload at all. It shrinks to null.
func Payloads() *rapid.Generator[json.RawMessage] {
	return rapid.Custom(func(t *rapid.T) json.RawMessage {
		var text string
		switch rapid.IntRange(0, 15).Draw(t, "kind") {
		default:
			text = drawValue(t, 3)
		case 0, 1, 2:
			text = rapid.SampledFrom(tiny).Draw(t, "tiny")
		case 12:
			text = drawDeep(t, min(rapid.IntRange(1, maxDepth*5/4).Draw(t, "depth"), maxDepth))
		case 13:
			text = drawHuge(t, drawSize(t))
		case 14:
			text = drawWide(t)
		case 15:
			text = drawSpaced(t, drawValue(t, 3))
		}
		return json.RawMessage(text)
	})
}

var tiny = []string{"null", "0", `""`, "{}", "[]", "true", "false"}

// numbers are at the edges of what doubles, and readers, can hold. All are within a double's range.
var numbers = []string{
	"0", "-0", "1", "-1", "0.0", "-0.0e-0", "1e0", "1E+2", "1e-2", "0.1", "9007199254740991", "9007199254740993", "-9007199254740993",
	"18446744073709551616", "1234567890123456789012345", "1.7976931348623157e308", "-1.7976931348623157e308", "5e-324", "1e-400",
	"2.2250738585072011e-308", "0.30000000000000004", "1" + zeros308, "0." + zeros308 + "1", "179769313486231570" + zeros308[:291],
}

var zeros308 = strings.Repeat("0", 308)

// pieces are parts of strings, as they stand between the quotes.
var pieces = []string{
	"a", " ", `\n`, `\"`, `\\`, `\/`, `\b\f\r\t`, "größe", "🚀", `\u0041`, `\ud83d\ude80`, `\uD834\uDd1e`, `\u0000`, `\u001f`, "\u007f", "\u0085",
	`\u2028`, "\u2028", "\ufeff", "\ufffd", `\ufffd`, `\uffff`, "\U0010ffff", `\udbff\udfff`, "<&>", "'", "{", "]", ",", ":", "e\u0301", "\u202e",
	`\\u0061`, `\\\\`, `seq`, `crc`, `\",\"crc\":\"00000000\"}`, strings.ReplaceAll(logLine, `"`, `\"`),
	strings.ReplaceAll(logLine, `"`, `\"`) + `\n`,
}

func drawText(t *rapid.T) string {
	piece := rapid.OneOf(
		rapid.SampledFrom([]string{"a", "b", "c"}), rapid.SampledFrom(pieces),
		rapid.Map(rapid.Rune(), func(r rune) string { return quotedText(string(r)) }),
		rapid.Map(rapid.Uint16(), func(u uint16) string { return escaped(u) }),
	)
	return `"` + strings.Join(rapid.SliceOfN(piece, 0, 8).Draw(t, "text"), "") + `"`
}

// quotedText is what stands between the quotes for s.
func quotedText(s string) string {
	text := quoted(s)
	return text[1 : len(text)-1]
}

func quoted(s string) string {
	raw, _ := json.Marshal(s) // a string can always be marshalled
	return string(raw)
}

// escaped is one escape, or a pair where the number is that of a surrogate.
func escaped(u uint16) string {
	switch {
	case u >= 0xd800 && u <= 0xdbff:
		return fmt.Sprintf(`\u%04x\uDC%02X`, u, u&0xff)
	case u >= 0xdc00 && u <= 0xdfff:
		return fmt.Sprintf(`\uD8%02x\u%04X`, u&0xff, u)
	}
	return fmt.Sprintf(`\u%04x`, u)
}

func drawNumber(t *rapid.T) string {
	return rapid.OneOf(
		rapid.SampledFrom(numbers),
		rapid.Map(rapid.Int64(), func(n int64) string { return strconv.FormatInt(n, 10) }),
		rapid.Map(rapid.Float64(), func(x float64) string { return strconv.FormatFloat(x, 'g', -1, 64) }),
	).Draw(t, "number")
}

// drawValue draws a value with at most so many levels below it.
func drawValue(t *rapid.T, levels int) string {
	kinds := 5
	if levels == 0 {
		kinds = 3
	}
	switch rapid.IntRange(0, kinds-1).Draw(t, "value") {
	case 0:
		return rapid.SampledFrom(tiny).Draw(t, "tiny")
	case 1:
		return drawText(t)
	case 2:
		return drawNumber(t)
	case 3:
		element := rapid.Custom(func(t *rapid.T) string { return drawValue(t, levels-1) })
		return "[" + strings.Join(rapid.SliceOfN(element, 0, 5).Draw(t, "array"), ",") + "]"
	}
	member := rapid.Custom(func(t *rapid.T) member { return member{drawText(t), drawValue(t, levels-1)} })
	return object(rapid.SliceOfNDistinct(member, 0, 5, meantName).Draw(t, "object"))
}

type member struct{ Name, Value string }

// meantName is what a name means, however it is spelled: two spellings of one are duplicates.
func meantName(m member) (name string) {
	_ = json.Unmarshal([]byte(m.Name), &name) // it is JSON by construction
	return name
}

func object(members []member) string {
	parts := make([]string, len(members))
	for i, m := range members {
		parts[i] = m.Name + ":" + m.Value
	}
	return "{" + strings.Join(parts, ",") + "}"
}

// drawDeep draws a value inside depth arrays and objects.
func drawDeep(t *rapid.T, depth int) string {
	objects := rapid.Uint64().Draw(t, "which are objects")
	text := drawValue(t, 0)
	if text == "[]" || text == "{}" {
		text = "null" // they would be one level more
	}
	var before, behind strings.Builder
	for i := range depth {
		if objects>>(i%64)&1 == 1 {
			before.WriteString(`{"` + strings.Repeat("a", i%3) + `":`)
			behind.WriteByte('}')
		} else {
			before.WriteByte('[')
			behind.WriteByte(']')
		}
	}
	closing := []byte(behind.String())
	slices.Reverse(closing)
	return before.String() + text + string(closing)
}

// drawSize is some KiB, and one time in five 100.
func drawSize(t *rapid.T) int {
	return rapid.SampledFrom([]int{1, 2, 4, 16, 100}).Draw(t, "KiB") << 10
}

// drawHuge draws a value of at least so many bytes: one string, or an array of one thing repeated.
func drawHuge(t *rapid.T, size int) string {
	if rapid.Bool().Draw(t, "array") {
		unit := drawValue(t, 1)
		return "[" + strings.Repeat(unit+",", size/(len(unit)+1)) + unit + "]"
	}
	unit := rapid.SampledFrom(pieces).Draw(t, "unit")
	return `"` + strings.Repeat(unit, size/len(unit)+1) + `"`
}

// drawWide draws an object of many names, most of which differ in their ends only.
func drawWide(t *rapid.T) string {
	n := rapid.IntRange(10, 200).Draw(t, "names")
	value := drawValue(t, 0)
	members := make([]member, n)
	for i := range members {
		members[i] = member{fmt.Sprintf(`"name-%d"`, i), value}
	}
	return object(members)
}

// drawSpaced puts white space around a value and between its tokens.
func drawSpaced(t *rapid.T, text string) string {
	space := rapid.SampledFrom([]string{" ", "\n", "\t", "\r\n", " \t\r\n ", "\n\n\n\n"}).Draw(t, "space")
	var buf bytes.Buffer
	_ = json.Indent(&buf, []byte(text), space, space) // it is JSON by construction
	return space + buf.String() + space
}

// BadPayloads draws what the log refuses as args and outputs: JSON that is torn, has something behind it, or never was any;
// and what encoding/json lets through or repairs: duplicate names in any spelling, lone surrogates, invalid UTF-8,
// numbers beyond a double's range, nesting deeper than 100. As it is, or inside something that is fine. None is empty.
func BadPayloads() *rapid.Generator[json.RawMessage] {
	return rapid.Custom(func(t *rapid.T) json.RawMessage {
		bad := rapid.OneOf(badValues()...).Draw(t, "bad")
		switch rapid.IntRange(0, 4).Draw(t, "inside") {
		case 1:
			bad = "[" + bad + "]"
		case 2:
			bad = `{"a":` + bad + `}`
		case 3:
			bad = "[" + drawValue(t, 2) + `,{"a":[[` + bad + "]]}]"
		case 4:
			bad = "[" + drawHuge(t, drawSize(t)) + "," + bad + "]"
		}
		return json.RawMessage(bad)
	})
}

var (
	neverJSON = []string{
		"x", "+1", "01", "-01", ".5", "1.", "1e", "1e+", "-", "0x10", "1_0", "NaN", "Infinity", "-Infinity", "undefined", "nul", "True",
		"[1,]", `{"a":1,}`, "[,1]", "[1 2]", "{1:2}", "{a:1}", "{'a':1}", "'a'", `{"a"}`, `{"a":}`, `{"a" 1}`, `{,"a":1}`, "/**/1", "1//",
		"\ufeff1", "\x00", "1\x00", "\"\x00\"", "\"\n\"", "\"\t\"", "\"\x1f\"", `"\x41"`, `"\u12g4"`, `"\u12"`, `"\'"`, "\v1", "\u00a01",
	}
	tooLarge = []string{
		"1e999", "-1e999", "1e309", "1.8e308", "-1.7976931348623159e308", "1" + zeros308 + "0", "1e99999999999999999999",
		"2" + zeros308 + ".5",
	}
	loneSurrogates = []string{
		`\ud83d`, `\ude80`, `\ude80\ud83d`, `\ud83d\ud83d`, `\ud83dx`, `\ud83d\u0041`, `\ud83d\n`, `\uDBFF`, `\udfff`, `\ud83d\\ude80`,
		`\ud83d\ude80\ude80`,
	}
	badUTF8 = []string{
		"\xff", "\x80", "\xc3", "\xc0\xaf", "\xe0\x80\xaf", "\xed\xa0\xbd\xed\xba\x80", "\xf0\x9f\x9a", "\xf4\x90\x80\x80", "\xf8\x88\x80\x80\x80",
	}
	trailing = []string{" 1", "x", ",", "]", "}", ":", "[]", `""`, "\x00", " null", "\n{}", "//", "\ufeff"}
)

func badValues() []*rapid.Generator[string] {
	inText := func(bad []string) *rapid.Generator[string] {
		return rapid.Custom(func(t *rapid.T) string {
			text := drawText(t)
			return text[:len(text)-1] + rapid.SampledFrom(bad).Draw(t, "bad") + `"`
		})
	}
	return []*rapid.Generator[string]{
		rapid.SampledFrom(neverJSON), rapid.SampledFrom(tooLarge), inText(loneSurrogates), inText(badUTF8),
		rapid.Custom(drawDuplicate), rapid.Custom(drawTorn), rapid.Custom(drawTooDeep),
		rapid.Custom(func(t *rapid.T) string { return drawValue(t, 2) + rapid.SampledFrom(trailing).Draw(t, "behind") }),
	}
}

// drawDuplicate draws an object in which one name stands twice, with so many others between as may change how names are
// looked for.
func drawDuplicate(t *rapid.T) string {
	spelled := rapid.SampledFrom([][2]string{
		{`"a"`, `"a"`}, {`"a"`, `"\u0061"`}, {`""`, `""`}, {`"🚀"`, `"\ud83d\ude80"`}, {`"\n"`, `"\u000A"`}, {`"/"`, `"\/"`},
	}).Draw(t, "name")
	n := rapid.IntRange(0, 40).Draw(t, "others")
	members := make([]member, 0, n+2)
	for i := range n {
		members = append(members, member{fmt.Sprintf(`"%d"`, i), "0"})
	}
	first := rapid.IntRange(0, n).Draw(t, "first")
	members = append(members[:first], append([]member{{spelled[0], drawValue(t, 1)}}, members[first:]...)...)
	return object(append(members, member{spelled[1], drawValue(t, 1)}))
}

// drawTorn draws the beginning of an array, an object or a string. All of them end with what began them, so that no
// beginning is whole.
func drawTorn(t *rapid.T) string {
	whole := "[" + drawValue(t, 2) + "]"
	switch rapid.IntRange(0, 2).Draw(t, "of") {
	case 1:
		whole = drawText(t)
	case 2:
		whole = `{"a":` + drawValue(t, 2) + "}"
	}
	return whole[:rapid.IntRange(1, len(whole)-1).Draw(t, "torn at")]
}

func drawTooDeep(t *rapid.T) string {
	return drawDeep(t, rapid.SampledFrom([]int{maxDepth + 1, maxDepth + 2, 1000, 100_000}).Draw(t, "depth"))
}

package crashtest

import (
	"bytes"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/jobwal/jobwal/wal"
)

var aNumber = regexp.MustCompile(`:[0-9]+`)

// assaults are what may be done to any image, healthy or not, without a thought for what it must lead to.
var assaults = map[string]func(t *rapid.T, img Image){
	"bytes": func(t *rapid.T, img Image) {
		b := img[someName(t, img)]
		for range min(len(b), rapid.IntRange(1, 2).Draw(t, "bytes")) {
			b[rapid.IntRange(0, len(b)-1).Draw(t, "at")] = rapid.Byte().Draw(t, "byte")
		}
	},
	"cut": func(t *rapid.T, img Image) {
		name := someName(t, img)
		img[name] = img[name][:rapid.IntRange(0, len(img[name])).Draw(t, "at")]
	},
	"block": func(t *rapid.T, img Image) {
		size := rapid.SampledFrom([]int{block, 4096}).Draw(t, "size")
		from, name := img[someName(t, img)], someName(t, img)
		at := rapid.IntRange(0, len(from)/size).Draw(t, "from") * size
		to := rapid.IntRange(0, len(img[name])/size).Draw(t, "to") * size
		b := bytes.Clone(from[at:min(at+size, len(from))])
		img[name] = slices.Concat(img[name][:to], b, img[name][min(to+size, len(img[name])):])
	},
	"lines": func(t *rapid.T, img Image) {
		a, b := someName(t, img), someName(t, img)
		from, to := bytes.SplitAfter(img[a], []byte("\n")), bytes.SplitAfter(img[b], []byte("\n"))
		line := bytes.Clone(from[rapid.IntRange(0, len(from)-1).Draw(t, "line")])
		at := rapid.IntRange(0, len(to)-1).Draw(t, "at")
		if rapid.Bool().Draw(t, "in its place") {
			to[at] = line
		} else {
			to = slices.Insert(to, at, line)
		}
		img[b] = bytes.Join(to, nil)
	},
	// A number is another one, and the checksum is right. Of a version from the future nothing more is known; and where the
	// last epoch there is was given, no writer can open the log, though all may read it.
	"number": func(t *rapid.T, img Image) {
		name := someName(t, img)
		lines := bytes.SplitAfter(img[name], []byte("\n"))
		i := rapid.IntRange(0, len(lines)-1).Draw(t, "line")
		salt := Salt(img[name])
		body, intact := Unseal(salt, string(lines[i]))
		if !intact {
			return
		}
		at := rapid.SampledFrom(append(aNumber.FindAllStringIndex(body, -1), []int{0, 0})).Draw(t, "number")
		if at[1] == 0 || strings.HasSuffix(body[:at[0]], `"version"`) {
			return
		}
		other := rapid.SampledFrom([]string{"0", "1", "2", "14", "15", "9007199254740993", "18446744073709551615",
			"18446744073709551616", "-1", "1e3", `"1"`, "null"}).Draw(t, "other")
		if other == "18446744073709551615" && strings.HasSuffix(body[:at[0]], `"epoch"`) {
			return
		}
		lines[i] = []byte(Seal(salt, body[:at[0]+1]+other+body[at[1]:]))
		img[name] = bytes.Join(lines, nil)
	},
	// An intact line of one segment stands, with the checksum that is right there, in the newest.
	"moved": func(t *rapid.T, img Image) {
		a, b := someName(t, img), img.Newest()
		from, to := bytes.SplitAfter(img[a], []byte("\n")), bytes.SplitAfter(img[b], []byte("\n"))
		body, intact := Unseal(Salt(img[a]), string(from[rapid.IntRange(0, len(from)-1).Draw(t, "line")]))
		if !intact {
			return
		}
		at := rapid.IntRange(0, len(to)-1).Draw(t, "at")
		img[b] = bytes.Join(slices.Insert(to, at, []byte(Seal(Salt(img[b]), body))), nil)
	},
}

func someName(t *rapid.T, img Image) string {
	names := img.Segments()
	return rapid.SampledFrom(append(names, names[len(names)-1])).Draw(t, "segment")
}

// W3, R4: whatever is done to a log, up to three things at once, right checksums included: every way to read it does as
// the judge says.
func TestF1_F3_F5_F6_W3_R4_any_assault(t *testing.T) {
	t.Parallel()
	kinds := []string{"bytes", "cut", "block", "lines", "number", "moved"}
	verdicts := make(map[Verdict]int)
	test := t
	rapid.Check(t, func(t *rapid.T) {
		jobs, size := rapid.IntRange(3, 20).Draw(t, "jobs"), rapid.Int64Range(wal.MinSegmentBytes, 4000).Draw(t, "bytes of a segment")
		img := imageOf(test, jobs, size, rapid.SampledFrom(endings).Draw(t, "ending"))
		var did []string
		for range rapid.IntRange(1, 3).Draw(t, "at once") {
			kind := rapid.SampledFrom(kinds).Draw(t, "kind")
			assaults[kind](t, img)
			did = append(did, kind)
		}
		j := Judge(img)
		verdicts[j.Verdict]++
		if err := assaulted(img, j, did); err != nil {
			t.Fatalf("%v: %v", did, err)
		}
	})
	t.Log(verdicts)
}

// assaulted is Examine, but for Salvage where checksums were forged: it keeps such lines, durable and more included, and
// refuses its own copy if they do not add up there.
func assaulted(img Image, j Judgement, did []string) error {
	if !slices.Contains(did, "number") && !slices.Contains(did, "moved") {
		return Examine(img, j)
	}
	for _, way := range ways {
		if err := way.try(img, j); err != nil {
			return fmt.Errorf("%s: %w (the judge says: %v)", way.name, err, j)
		}
	}
	return nil
}

package wal_test

import (
	"bytes"
	"strings"

	"github.com/jobwal/jobwal/recovery/crashtest"
)

// image is the files of a log's directory, by name.
type image = crashtest.Image

// verdict is what Open has to make of a directory, as the judge says.
type verdict struct {
	crashtest.Judgement
	offset map[string]int // of what is cut, by segment
}

func judge(img image) verdict {
	v := verdict{crashtest.Judge(img), make(map[string]int)}
	for name, cut := range v.Cut {
		v.offset[name] = len(img[name]) - len(cut)
	}
	return v
}

// refused: Open refuses as corrupt.
func (v verdict) refused() bool { return v.Verdict == crashtest.Refused }

// corrupt: it opens, and reading from the front is corrupt behind Readable.
func (v verdict) corrupt() bool { return v.Verdict == crashtest.RefusedWhenRead }

// lineStarts are the offsets of a file's lines, but for empty ones, which are room.
func lineStarts(file []byte) (starts []int) {
	at := 0
	for line := range bytes.Lines(file) {
		if len(line) > 1 {
			starts = append(starts, at)
		}
		at += len(line)
	}
	return starts
}

// logIn is the id of the log that a segment is of, by its header; "" without one.
func logIn(file []byte) string {
	line, _, _ := bytes.Cut(file, []byte("\n"))
	body, intact := crashtest.Unseal(crashtest.Salt(file), string(line))
	_, id, _ := strings.Cut(body, `"log":"`)
	id, _, _ = strings.Cut(id, `"`)
	if !intact {
		return ""
	}
	return id
}

// refloored gives a segment a header, with a right checksum, that has another floor; false where it has no header.
func refloored(file []byte, floor string) ([]byte, bool) {
	header, rest, _ := strings.Cut(string(file), "\n")
	body, intact := crashtest.Unseal(crashtest.Salt(file), header)
	before, after, found := strings.Cut(body, `"floor":`)
	_, after, _ = strings.Cut(after, ",")
	return []byte(crashtest.Seal(crashtest.Salt(file), before+`"floor":`+floor+","+after) + rest), intact && found
}

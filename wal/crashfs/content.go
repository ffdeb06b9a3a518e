package crashfs

import (
	"crypto/sha256"
	"encoding/binary"
	"maps"
	"slices"
)

const (
	// SectorSize is what a disk writes in one piece: a crash leaves all of what one write put into a sector, or none.
	SectorSize = 512
	// PageSize is what a kernel writes back in one piece, more often than not.
	PageSize = 4096
	// MaxFileSize is where EFBIG begins. Files are sparse: an offset costs nothing, only bytes do.
	MaxFileSize = 1 << 44
)

type page [PageSize]byte

// content is what a file holds. A page that is missing is zeros, and so is all at and past size.
//
// A page is never written once it stands in a map: whoever changes it puts another in its place. So any number of
// contents, in worlds before and after a crash, share their pages without a thought.
type content struct {
	pages map[int64]*page
	size  int64
}

func (c *content) clone() content { return content{maps.Clone(c.pages), c.size} }

// read copies the bytes at off into p, zeros past the end, whatever the size.
func (c *content) read(p []byte, off int64) {
	for len(p) > 0 {
		n := int(min(int64(len(p)), PageSize-off%PageSize))
		if pg := c.pages[off/PageSize]; pg != nil {
			copy(p[:n], pg[off%PageSize:])
		} else {
			clear(p[:n])
		}
		p, off = p[n:], off+int64(n)
	}
}

// put places bytes and leaves the size alone.
func (c *content) put(p []byte, off int64) {
	for len(p) > 0 {
		pg := c.replace(off / PageSize)
		n := copy(pg[off%PageSize:], p)
		p, off = p[n:], off+int64(n)
	}
}

// zero clears the bytes from off to end, both in one page, and leaves the size alone.
func (c *content) zero(off, end int64) {
	if c.pages[off/PageSize] == nil || off >= end {
		return
	}
	pg := c.replace(off / PageSize)
	clear(pg[off%PageSize : off%PageSize+end-off])
}

// replace puts a copy of a page in its place, to be written by the caller.
func (c *content) replace(i int64) *page {
	pg := new(page)
	if old := c.pages[i]; old != nil {
		*pg = *old
	}
	if c.pages == nil {
		c.pages = make(map[int64]*page)
	}
	c.pages[i] = pg
	return pg
}

// resize sets the size. What is past it is zeros, should the file ever grow again.
func (c *content) resize(size int64) {
	c.size = size
	maps.DeleteFunc(c.pages, func(i int64, _ *page) bool { return i*PageSize >= size })
	if size%PageSize != 0 {
		c.zero(size, (size/PageSize+1)*PageSize)
	}
}

// take makes the pages from off to end those of another content, and the size too.
func (c *content) take(from *content, off, end int64) {
	for i := off / PageSize; i*PageSize < end; i++ {
		if pg := from.pages[i]; pg != nil {
			if c.pages == nil {
				c.pages = make(map[int64]*page)
			}
			c.pages[i] = pg
		} else {
			delete(c.pages, i)
		}
	}
	c.size = from.size
}

// sectors lists the sectors at or past off that hold a byte which is not zero.
func (c *content) sectors(off int64) []int64 {
	var behind, found []int64
	for i := range c.pages {
		if (i+1)*PageSize > off {
			behind = append(behind, i)
		}
	}
	slices.Sort(behind)
	for _, i := range behind {
		for s := i * PageSize / SectorSize; s < (i+1)*PageSize/SectorSize; s++ {
			if (s+1)*SectorSize > off && c.sector(s) != (sector{}) {
				found = append(found, s)
			}
		}
	}
	return found
}

type sector [SectorSize]byte

func (c *content) sector(i int64) (s sector) {
	c.read(s[:], i*SectorSize)
	return s
}

// sum is the same for equal contents, however they came about.
func (c *content) sum() (sum [sha256.Size]byte) {
	h := sha256.New()
	h.Write(binary.AppendVarint(nil, c.size))
	for _, i := range slices.Sorted(maps.Keys(c.pages)) {
		if *c.pages[i] != (page{}) {
			h.Write(binary.AppendVarint(nil, i))
			h.Write(c.pages[i][:])
		}
	}
	h.Sum(sum[:0])
	return sum
}

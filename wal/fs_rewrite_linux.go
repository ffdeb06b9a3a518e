package wal

import "golang.org/x/sys/unix"

// RewritesAreCheaper on ext4 and XFS, by measurement (docs/adr/0008). File systems that copy on write gain nothing.
func (osFS) RewritesAreCheaper(dir string) bool {
	var stat unix.Statfs_t
	if unix.Statfs(dir, &stat) != nil {
		return false
	}
	return stat.Type == unix.EXT4_SUPER_MAGIC || stat.Type == unix.XFS_SUPER_MAGIC
}

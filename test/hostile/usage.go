// SPDX-License-Identifier: Apache-2.0

//go:build hostile

package hostile

import (
	"bufio"
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/meshd/meshd/test/lab"
)

// FrequentCollection is an environment in which a daemon collects its heap whenever that
// has grown by a twentieth. So the allocated heap exceeds what is in use by little, soon
// after an attack, too: some two MB, most of the rest is userspace WireGuard's buffers.
const FrequentCollection = "GOGC=5"

// Usage is what a daemon uses of memory and descriptors.
type Usage struct {
	Descriptors, Goroutines int
	Heap, RSS, Disk         int // bytes
}

// UsageOf reads it from a daemon's metrics and the kernel.
func UsageOf(ctx context.Context, n *lab.Node) (Usage, error) {
	u, err := outsideView(n)
	if err != nil {
		return u, err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	text, err := n.Get(ctx, "/metrics")
	if err != nil {
		return u, err
	}
	found := 0
	for line := range strings.Lines(text) {
		var value float64
		for name, to := range map[string]*int{"go_goroutines": &u.Goroutines, "go_memstats_heap_alloc_bytes": &u.Heap} {
			if _, err := fmt.Sscanf(line, name+" %g", &value); err == nil {
				*to, found = int(value), found+1
			}
		}
	}
	if found != 2 {
		return u, fmt.Errorf("read metrics of %s: %d of 2 are there", n.Name, found)
	}
	return u, nil
}

// outsideView returns the part that the kernel knows.
func outsideView(n *lab.Node) (Usage, error) {
	var u Usage
	proc := fmt.Sprintf("/proc/%d/", n.PID())
	fds, err := os.ReadDir(proc + "fd")
	if err != nil {
		return u, fmt.Errorf("count descriptors of %s: %w", n.Name, err)
	}
	u.Descriptors = len(fds)
	f, err := os.Open(proc + "status")
	if err != nil {
		return u, err
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var kib int
		if _, err := fmt.Sscanf(lines.Text(), "VmRSS: %d kB", &kib); err == nil {
			u.RSS = kib << 10
		}
	}
	err = filepath.WalkDir(n.Path(lab.StateDir), func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return nil // a temporary file has become another one
		}
		if info, err := d.Info(); err == nil {
			u.Disk += int(info.Size())
		}
		return nil
	})
	return u, err
}

// excess names the values that exceed those of before by more than an allowance.
func (u Usage) excess(before, more Usage) []string {
	var all []string
	for _, c := range []struct {
		what              string
		got, before, more int
	}{
		{"descriptors", u.Descriptors, before.Descriptors, more.Descriptors},
		{"goroutines", u.Goroutines, before.Goroutines, more.Goroutines},
		{"bytes of heap", u.Heap, before.Heap, more.Heap},
		{"bytes of RSS", u.RSS, before.RSS, more.RSS},
		{"bytes on disk", u.Disk, before.Disk, more.Disk},
	} {
		if c.got > c.before+c.more {
			all = append(all, fmt.Sprintf("%d %s, %d before, %d more allowed", c.got, c.what, c.before, c.more))
		}
	}
	return all
}

// most takes the maximum of each value.
func (u Usage) most(o Usage) Usage {
	return Usage{
		max(u.Descriptors, o.Descriptors), max(u.Goroutines, o.Goroutines), max(u.Heap, o.Heap), max(u.RSS, o.RSS), max(u.Disk, o.Disk),
	}
}

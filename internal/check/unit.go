// SPDX-License-Identifier: Apache-2.0

package check

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/meshd/meshd/internal/config"
)

// Unit is what systemd lets the daemon write to: with ProtectSystem=strict, only the paths
// that the unit and its drop-ins name.
type Unit struct {
	Strict   bool
	Writable []string // directories and files
}

// Directory is a directory that the daemon writes to.
type Directory struct {
	Key  string // of the configuration, or the flag
	Path string // without symbolic links
}

// parseUnit parses the output of systemctl show for unitProperties.
func parseUnit(text string) Unit {
	var u Unit
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		switch key {
		case "ProtectSystem":
			u.Strict = value == "strict"
		case "ReadWritePaths":
			for path := range strings.FieldsSeq(value) {
				// "-" marks a path that may be missing, "+" one relative to the unit's root
				// directory (systemd.exec(5)).
				u.Writable = append(u.Writable, strings.TrimLeft(path, "-+"))
			}
		case "StateDirectory":
			for name := range strings.FieldsSeq(value) {
				u.Writable = append(u.Writable, filepath.Join("/var/lib", name))
			}
		}
	}
	slices.Sort(u.Writable)
	return u
}

// allows reports whether the daemon may write to a directory.
func (u Unit) allows(path string) bool {
	return !u.Strict || slices.ContainsFunc(u.Writable, func(dir string) bool {
		return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
	})
}

// unit reports directories that the daemon writes to but the unit does not allow. On a
// host without the unit there are none.
func (f Facts) unit() []Finding {
	const what = "unit"
	if !f.Unit.Strict {
		return nil
	}
	var names, paths []string
	for _, d := range f.Written {
		if !f.Unit.allows(d.Path) {
			names = append(names, fmt.Sprintf("%s (%s)", d.Path, d.Key))
			paths = append(paths, d.Path)
		}
	}
	if paths == nil {
		return ok(what, "meshd.service may write to all directories that the configuration names")
	}
	slices.Sort(paths)
	paths = slices.Compact(paths)
	return []Finding{{
		Error, what, "meshd.service may not write to " + strings.Join(names, ", "),
		fmt.Sprintf("run: mkdir -p %s; systemctl edit meshd; add the lines below; run: systemctl restart meshd\n%s", strings.Join(paths, " "), config.DropIn(paths...)),
	}}
}

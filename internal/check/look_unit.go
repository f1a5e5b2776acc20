// SPDX-License-Identifier: Apache-2.0

package check

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/meshd/meshd/internal/cni"
	"github.com/meshd/meshd/internal/config"
	"github.com/meshd/meshd/internal/k3s"
)

const unitProperties = "ProtectSystem,ReadWritePaths,StateDirectory"

// lookUnit asks systemd, if it runs here, which directories the daemon may write to.
func (f *Facts) lookUnit(ctx context.Context, cfg config.Config) error {
	for _, d := range f.written(cfg) {
		d.Path = resolve(d.Path)
		f.Written = append(f.Written, d)
	}
	if _, err := os.Stat("/run/systemd/system"); errors.Is(err, fs.ErrNotExist) { // sd_booted(3)
		return nil
	}
	out, err := exec.CommandContext(ctx, "systemctl", "show", "--property="+unitProperties, "meshd.service").Output()
	if err != nil {
		return fmt.Errorf("ask systemd for meshd.service: %w", err)
	}
	f.Unit = parseUnit(string(out))
	for i, path := range f.Unit.Writable {
		f.Unit.Writable[i] = resolve(path)
	}
	return nil
}

// written returns the directories that the daemon writes to.
func (f *Facts) written(cfg config.Config) []Directory {
	out := []Directory{{"--state-dir", f.State.Path}}
	if cfg.CNI.Enabled {
		out = append(out, writtenCNI(cfg, f.CNI.Status)...)
	}
	if cfg.K3s.WriteConfig {
		out = append(out, Directory{"k3s.write-config", filepath.Dir(k3s.DropIn)})
	}
	return out
}

// writtenCNI returns the directories of CNI that the daemon writes to. That of the plugins
// is among them only if a plugin has to be linked.
func writtenCNI(cfg config.Config, s cni.Status) []Directory {
	out := []Directory{{"cni.conf-dir", cfg.CNI.ConfDir}}
	for _, p := range s.Plugins {
		if !p.Works {
			return append(out, Directory{"cni.bin-dir", cfg.CNI.BinDir})
		}
	}
	return out
}

// resolve follows symbolic links as far as the path exists.
func resolve(path string) string {
	parent := existing(path)
	real, err := filepath.EvalSymlinks(parent)
	rest, relErr := filepath.Rel(parent, path)
	if err != nil || relErr != nil {
		return path
	}
	return filepath.Join(real, rest)
}

// SPDX-License-Identifier: Apache-2.0

package check

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/meshd/meshd/internal/cni"
)

// shown is the output of systemctl show for the packaged unit.
const shown = `ProtectSystem=strict
StateDirectory=meshd
ReadWritePaths=-/etc/cni -/etc/rancher -/opt/cni -/run/xtables.lock /proc/sys/net
`

func TestParseUnit(t *testing.T) {
	for text, want := range map[string]Unit{
		shown: {Strict: true, Writable: []string{"/etc/cni", "/etc/rancher", "/opt/cni", "/proc/sys/net", "/run/xtables.lock", "/var/lib/meshd"}},
		// There is no such unit.
		"ProtectSystem=no\nReadWritePaths=\nStateDirectory=\n": {},
	} {
		if diff := cmp.Diff(want, parseUnit(text)); diff != "" {
			t.Errorf("%q (-want +got):\n%s", text, diff)
		}
	}
}

func TestUnitFindings(t *testing.T) {
	usual := []Directory{
		{"--state-dir", "/var/lib/meshd"},
		{"cni.conf-dir", "/etc/cni/net.d"},
		{"cni.bin-dir", "/opt/cni/bin"},
		{"k3s.write-config", "/etc/rancher/k3s/config.yaml.d"},
	}
	tests := []struct {
		name    string
		unit    string
		written []Directory
		want    []string
	}{
		{"the package's unit and the usual places", shown, usual, nil},
		{
			"places of one's own", shown,
			[]Directory{{"--state-dir", "/var/lib/meshd"}, {"cni.conf-dir", "/srv/cni"}, {"cni.bin-dir", "/opt/cni-plugins/bin"}},
			[]string{"error unit: meshd.service may not write to /srv/cni (cni.conf-dir), /opt/cni-plugins/bin (cni.bin-dir) → " +
				"run: mkdir -p /opt/cni-plugins/bin /srv/cni; systemctl edit meshd; add the lines below; run: systemctl restart meshd\n" +
				"[Service]\nReadWritePaths=-/opt/cni-plugins/bin -/srv/cni"},
		},
		{
			"one place for both", shown,
			[]Directory{{"cni.conf-dir", "/srv/cni"}, {"cni.bin-dir", "/srv/cni"}},
			[]string{"error unit: meshd.service may not write to /srv/cni (cni.conf-dir), /srv/cni (cni.bin-dir) → " +
				"run: mkdir -p /srv/cni; systemctl edit meshd; add the lines below; run: systemctl restart meshd\n" +
				"[Service]\nReadWritePaths=-/srv/cni"},
		},
		{
			"with the drop-in", strings.Replace(shown, "/proc/sys/net", "/proc/sys/net -/srv", 1),
			[]Directory{{"cni.conf-dir", "/srv/cni"}},
			nil,
		},
		{"a unit that isn't strict", "ProtectSystem=yes\n", []Directory{{"cni.conf-dir", "/srv/cni"}}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := healthy()
			f.Unit, f.Written = parseUnit(tt.unit), tt.written
			if diff := cmp.Diff(tt.want, bad(Evaluate(parse(t), f))); diff != "" {
				t.Errorf("findings (-want +got):\n%s", diff)
			}
		})
	}
}

// The directory of plugins is written to only if a plugin is missing.
func TestWritten(t *testing.T) {
	cfg := parse(t, "cni: {conf-dir: /a, bin-dir: /b}", "k3s: {write-config: true}")
	f := Facts{State: State{Path: "/s"}, CNI: CNI{Status: cni.Status{Plugins: []cni.Plugin{{Name: "bridge", Works: true}}}}}
	want := []Directory{{"--state-dir", "/s"}, {"cni.conf-dir", "/a"}, {"k3s.write-config", "/etc/rancher/k3s/config.yaml.d"}}
	if diff := cmp.Diff(want, f.written(cfg)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	f.CNI.Status.Plugins[0].Works = false
	want = append(want[:2:2], Directory{"cni.bin-dir", "/b"}, want[2])
	if diff := cmp.Diff(want, f.written(cfg)); diff != "" {
		t.Errorf("with a plugin to link (-want +got):\n%s", diff)
	}
	if got := f.written(parse(t, "cni: {enabled: false}")); len(got) != 1 {
		t.Errorf("without CNI and k3s: got %v, want only the state directory", got)
	}
}

func TestResolve(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "real"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("real", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{"link": "real", "link/net.d": "real/net.d", "none/net.d": "none/net.d"} {
		if got := resolve(filepath.Join(dir, path)); got != filepath.Join(dir, want) {
			t.Errorf("%s: got %s, want %s in %s", path, got, want, dir)
		}
	}
}

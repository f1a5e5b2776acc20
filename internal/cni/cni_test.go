// SPDX-License-Identifier: Apache-2.0

package cni_test

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/meshd/meshd/internal/cni"
	"github.com/meshd/meshd/internal/mesh"
)

func TestRender(t *testing.T) {
	tests := []struct {
		golden string
		cidrs  []netip.Prefix
	}{
		{"ipv4.conflist", prefixes("10.42.7.0/24")},
		{"ipv6.conflist", prefixes("fd42:7::/64")},
		{"dual.conflist", prefixes("10.42.7.0/24", "fd42:7::/64")},
		{"dual-ipv6-first.conflist", prefixes("fd42:7::/64", "10.42.7.0/24")},
	}
	for _, tt := range tests {
		t.Run(tt.golden, func(t *testing.T) {
			want, err := os.ReadFile(filepath.Join("testdata", tt.golden))
			if err != nil {
				t.Fatal(err)
			}
			got, err := cni.Render(cni.Config{Bridge: "kube-bridge", PodCIDRs: tt.cidrs, MTU: 1420})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), string(got)); diff != "" {
				t.Errorf("conflist (-want +got):\n%s", diff)
			}
		})
	}
}

func TestRenderRefuses(t *testing.T) {
	tests := []struct {
		name  string
		cidrs []netip.Prefix
		want  string
	}{
		{"none", nil, "no pod CIDR"},
		{"zero", []netip.Prefix{{}}, "not a network"},
		{"host bits", prefixes("10.42.7.1/24"), "10.42.7.1/24: not a network"},
		{"no room", prefixes("10.42.7.0/31"), "10.42.7.0/31: no room"},
		{"no room, IPv6", prefixes("fd42::/127"), "fd42::/127: no room"},
		{"one family twice", prefixes("10.42.7.0/24", "fd42::/64", "10.42.8.0/24"), "10.42.7.0/24 and 10.42.8.0/24"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := cni.Render(cni.Config{Bridge: "kube-bridge", PodCIDRs: tt.cidrs, MTU: 1420})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %q, %v, want an error with %q", got, err, tt.want)
			}
		})
	}
}

// Each case has a state of a host and the changes that Plan returns for it. After they are
// applied, Plan returns no further changes.
func TestPlan(t *testing.T) {
	tests := []struct {
		name    string
		host    func(t *testing.T, c cni.Config)
		changes string // of the whole plan, one a line, paths relative to the host's root
		err     string // "" for none
	}{
		{
			name: "fresh",
			host: func(t *testing.T, c cni.Config) { source(t, c, cni.PluginNames()...) },
			changes: `
				link bin/bridge -> source/bridge
				link bin/host-local -> source/host-local
				link bin/loopback -> source/loopback
				link bin/portmap -> source/portmap
				write conf/10-meshd.conflist`,
		},
		{
			name: "as wanted",
			host: install,
		},
		{
			name: "plugins that are not meshd's",
			host: func(t *testing.T, c cni.Config) {
				source(t, c, "loopback", "bridge")
				file(t, filepath.Join(c.BinDir, "bridge"), "a bridge")
				file(t, filepath.Join(c.BinDir, "host-local"), "a host-local")
				file(t, filepath.Join(c.ConfDir, "../multi"), "all in one")
				link(t, "../multi", filepath.Join(c.BinDir, "portmap"))
			},
			changes: `
				link bin/loopback -> source/loopback
				write conf/10-meshd.conflist`,
		},
		{
			name: "no plugins",
			host: func(t *testing.T, c cni.Config) { source(t, c, "bridge", "host-local", "loopback") },
			changes: `
				link bin/bridge -> source/bridge
				link bin/host-local -> source/host-local
				link bin/loopback -> source/loopback`,
			err: "link plugin portmap: neither bin/portmap nor source/portmap exists; install the package containernetworking-plugins",
		},
		{
			name: "package removed",
			host: func(t *testing.T, c cni.Config) {
				install(t, c)
				remove(t, filepath.Join(c.PluginSource, "bridge"))
			},
			err: "link plugin bridge: neither bin/bridge nor source/bridge exists; install the package containernetworking-plugins",
		},
		{
			name: "our link is broken",
			host: func(t *testing.T, c cni.Config) {
				install(t, c)
				remove(t, filepath.Join(c.BinDir, "bridge"))
				link(t, filepath.Join(c.PluginSource, "bridge-0.9"), filepath.Join(c.BinDir, "bridge"))
			},
			changes: `
				delete bin/bridge
				link bin/bridge -> source/bridge`,
		},
		{
			name: "a link that is not meshd's is broken",
			host: func(t *testing.T, c cni.Config) {
				install(t, c)
				remove(t, filepath.Join(c.BinDir, "bridge"))
				link(t, "/nowhere/bridge", filepath.Join(c.BinDir, "bridge"))
			},
			err: "link plugin bridge: bin/bridge exists, is not meshd's, and is neither a file nor a link to one; move it away",
		},
		{
			name: "directory in place of a plugin",
			host: func(t *testing.T, c cni.Config) {
				install(t, c)
				remove(t, filepath.Join(c.BinDir, "bridge"))
				if err := os.Mkdir(filepath.Join(c.BinDir, "bridge"), 0o755); err != nil {
					t.Fatal(err)
				}
			},
			err: "link plugin bridge: bin/bridge exists, is not meshd's, and is neither a file nor a link to one; move it away",
		},
		{
			name: "conflist of an earlier configuration",
			host: func(t *testing.T, c cni.Config) {
				c.MTU = 1380
				install(t, c)
			},
			changes: `write conf/10-meshd.conflist`,
		},
		{
			name: "conflist deleted",
			host: func(t *testing.T, c cni.Config) {
				install(t, c)
				remove(t, filepath.Join(c.ConfDir, cni.FileName))
			},
			changes: `write conf/10-meshd.conflist`,
		},
		{
			name: "incomplete conflist",
			host: func(t *testing.T, c cni.Config) {
				install(t, c)
				file(t, filepath.Join(c.ConfDir, cni.FileName), `{"cniVersion": "1.0`)
			},
			changes: `write conf/10-meshd.conflist`,
		},
		{
			name: "conflist of another network under our name",
			host: func(t *testing.T, c cni.Config) {
				install(t, c)
				file(t, filepath.Join(c.ConfDir, cni.FileName), `{"name": "cbr0", "plugins": []}`)
			},
			err: `install conflist: conf/10-meshd.conflist exists for the network "cbr0"; move it away`,
		},
		{
			name: "temporary file left by a crash",
			host: func(t *testing.T, c cni.Config) {
				install(t, c)
				file(t, filepath.Join(c.ConfDir, ".10-meshd.conflist.123.tmp"), `{"na`)
				file(t, filepath.Join(c.ConfDir, ".10-flannel.conflist.123.tmp"), `{"na`)
			},
			changes: `delete conf/.10-meshd.conflist.123.tmp`,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, root := host(t)
			tt.host(t, c)

			changes, err := plan(t, c)
			if diff := cmp.Diff(lines(tt.changes), printed(changes, root)); diff != "" {
				t.Errorf("plan (-want +got):\n%s", diff)
			}
			if got := message(err, root); got != tt.err {
				t.Errorf("got error %q, want %q", got, tt.err)
			}
			if err := cni.Apply(changes); err != nil {
				t.Fatal(err)
			}

			changes, err = plan(t, c)
			if got := printed(changes, root); got != nil {
				t.Errorf("changes after Apply: got %q, want none", got)
			}
			if got := message(err, root); got != tt.err {
				t.Errorf("got error %q afterwards, want %q", got, tt.err)
			}
		})
	}
}

// The plan for a host in the desired state is empty, so Apply writes nothing. A write would
// make containerd load the conflist again.
func TestApplyWritesOnce(t *testing.T) {
	c, root := host(t)
	install(t, c)
	before := snapshot(t, root)
	install(t, c)
	if diff := cmp.Diff(before, snapshot(t, root)); diff != "" {
		t.Errorf("written again (-before +after):\n%s", diff)
	}
}

func TestApplyModes(t *testing.T) {
	c, _ := host(t)
	install(t, c)
	want := map[string]fs.FileMode{
		c.ConfDir:                              fs.ModeDir | 0o755,
		c.BinDir:                               fs.ModeDir | 0o755,
		filepath.Join(c.ConfDir, cni.FileName): 0o644,
	}
	got := map[string]fs.FileMode{}
	for path := range want {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		got[path] = info.Mode()
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("modes (-want +got):\n%s", diff)
	}
}

// A file that appears between Observe and Apply is not replaced, and later changes are not
// made.
func TestApplyStops(t *testing.T) {
	c, root := host(t)
	source(t, c, cni.PluginNames()...)
	changes, err := plan(t, c)
	if err != nil {
		t.Fatal(err)
	}
	file(t, filepath.Join(c.BinDir, "host-local"), "a host-local")

	err = cni.Apply(changes)
	if !errors.Is(err, fs.ErrExist) || !strings.Contains(err.Error(), "link "+c.BinDir+"/host-local") {
		t.Errorf("got %v, want one that names the link", err)
	}
	changes, err = plan(t, c)
	if err != nil {
		t.Fatal(err)
	}
	want := lines(`
		link bin/loopback -> source/loopback
		link bin/portmap -> source/portmap
		write conf/10-meshd.conflist`)
	if diff := cmp.Diff(want, printed(changes, root)); diff != "" {
		t.Errorf("remaining changes (-want +got):\n%s", diff)
	}
}

// A conflist of ours with other pod CIDRs is withdrawn, so that no pod starts with them.
func TestPlanWithdrawal(t *testing.T) {
	c := cni.Config{ConfDir: "/etc/cni/net.d", Bridge: "kube-bridge", PodCIDRs: prefixes("10.42.7.0/24"), MTU: 1420}
	render := func(c cni.Config) []byte {
		list, err := cni.Render(c)
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	former, none := c, c
	former.PodCIDRs, none.PodCIDRs = prefixes("10.42.0.0/24"), nil
	for _, tt := range []struct {
		name     string
		now      cni.Config
		conflist []byte
		want     int
	}{
		{"none", c, nil, 0},
		{"that of now", c, render(c), 0},
		{"of other pod CIDRs", c, render(former), 1},
		{"of pod CIDRs, and this node has none now", none, render(former), 1},
		{"another network's", c, []byte(`{"name": "cilium"}`), 0},
		{"another network's, and this node has no pod CIDRs", none, []byte(`{"name": "cilium"}`), 0},
	} {
		changes, err := cni.PlanWithdrawal(tt.now, cni.Status{Conflist: tt.conflist})
		if err != nil || len(changes) != tt.want || tt.want > 0 && (changes[0].Kind != cni.Delete || changes[0].Path != "/etc/cni/net.d/10-meshd.conflist") {
			t.Errorf("%s: got %v, %v, want %d changes", tt.name, changes, err, tt.want)
		}
	}
}

func TestReserved(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"10.42.7.2", "10.42.7.3", "10.42.0.9", "fd42:7::2", "last_reserved_ip.0", "lock"} {
		file(t, filepath.Join(dir, name), "")
	}
	for _, tt := range []struct {
		name string
		dir  string
		pods []netip.Prefix
		want int
	}{
		{"no pod ever ran", filepath.Join(dir, "missing"), prefixes("10.42.7.0/24"), 0},
		{"two pods, and one of a former slot", dir, prefixes("10.42.7.0/24"), 2},
		{"both families", dir, prefixes("10.42.7.0/24", "fd42:7::/64"), 3},
		{"only of a former slot", dir, prefixes("10.42.8.0/24"), 0},
	} {
		got, err := cni.Reserved(tt.dir, tt.pods)
		if err != nil || len(got) != tt.want {
			t.Errorf("%s: got %v, %v, want %d addresses", tt.name, got, err, tt.want)
		}
	}
}

func TestPlanRemoval(t *testing.T) {
	tests := []struct {
		name    string
		host    func(t *testing.T, c cni.Config)
		changes string
	}{
		{
			name: "nothing there",
			host: func(*testing.T, cni.Config) {},
		},
		{
			name: "installed, beside others",
			host: func(t *testing.T, c cni.Config) {
				install(t, c)
				file(t, filepath.Join(c.ConfDir, "05-cilium.conflist"), `{"name": "cilium"}`)
				file(t, filepath.Join(c.BinDir, "cilium"), "a plugin")
				link(t, filepath.Join(c.PluginSource, "firewall"), filepath.Join(c.BinDir, "firewall"))
				file(t, filepath.Join(c.ConfDir, ".10-meshd.conflist.123.tmp"), `{"na`)
			},
			changes: `
				delete conf/10-meshd.conflist
				delete bin/bridge
				delete bin/host-local
				delete bin/loopback
				delete bin/portmap
				delete conf/.10-meshd.conflist.123.tmp`,
		},
		{
			name: "nothing is ours",
			host: func(t *testing.T, c cni.Config) {
				source(t, c, cni.PluginNames()...)
				file(t, filepath.Join(c.ConfDir, cni.FileName), `{"name": "cbr0"}`)
				file(t, filepath.Join(c.BinDir, "bridge"), "a bridge")
				link(t, "/nowhere/loopback", filepath.Join(c.BinDir, "loopback"))
			},
		},
		{
			name: "our links are broken",
			host: func(t *testing.T, c cni.Config) {
				install(t, c)
				if err := os.RemoveAll(c.PluginSource); err != nil {
					t.Fatal(err)
				}
				remove(t, filepath.Join(c.ConfDir, cni.FileName))
			},
			changes: `
				delete bin/bridge
				delete bin/host-local
				delete bin/loopback
				delete bin/portmap`,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, root := host(t)
			tt.host(t, c)
			changes := cni.PlanRemoval(c, observe(t, c))
			if diff := cmp.Diff(lines(tt.changes), printed(changes, root)); diff != "" {
				t.Errorf("plan (-want +got):\n%s", diff)
			}
			// Twice, because another process may have deleted the files already.
			for range 2 {
				if err := cni.Apply(changes); err != nil {
					t.Fatal(err)
				}
			}
			if left := cni.PlanRemoval(c, observe(t, c)); left != nil {
				t.Errorf("changes after Apply: got %q, want none", printed(left, root))
			}
		})
	}
}

func TestProblems(t *testing.T) {
	c, root := host(t)
	for _, name := range []string{
		"05-cilium.conflist", "10-flannel.conf", "00-old.json", // these win
		"10-meshd.conflist", "20-weave.conflist", // these don't
		"05-cilium.conflist.cilium_bak", ".10-meshd.conflist.1.tmp", // containerd doesn't look at these
	} {
		file(t, filepath.Join(c.ConfDir, name), "{}")
	}
	if err := os.Mkdir(filepath.Join(c.ConfDir, "00-directory.conflist"), 0o755); err != nil {
		t.Fatal(err)
	}

	var want []mesh.Problem
	for _, name := range []string{"00-old.json", "05-cilium.conflist", "10-flannel.conf"} {
		want = append(want, mesh.Problem{
			Kind:   "cni-conflict",
			Text:   "containerd uses conf/" + name + " and not 10-meshd.conflist, which sorts after it",
			Advice: "remove that network from the host, or leave the pods to it with cni: {enabled: false}",
		})
	}
	got := cni.Problems(c, observe(t, c))
	for i := range got {
		got[i].Text = strings.ReplaceAll(got[i].Text, root+"/", "")
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("problems (-want +got):\n%s", diff)
	}
}

func FuzzPlan(f *testing.F) {
	c := cni.Config{Bridge: "kube-bridge", PodCIDRs: prefixes("10.42.7.0/24"), MTU: 1420}
	ours, err := cni.Render(c)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(ours)
	f.Add([]byte(`{"name": "cbr0"}`))
	f.Add([]byte(`{"name": 1}`))
	f.Fuzz(func(t *testing.T, conflist []byte) {
		s := cni.Status{Conflist: conflist}
		changes, err := cni.Plan(c, s)
		switch {
		case err != nil && len(changes) > 0:
			t.Errorf("got %v and %v: a foreign conflist is replaced", err, changes)
		case err != nil && len(cni.PlanRemoval(c, s)) > 0:
			t.Errorf("got %v: a foreign conflist is deleted", err)
		case string(conflist) == string(ours) && len(changes) > 0:
			t.Errorf("got %v, want nothing to do", changes)
		}
	})
}

// host returns a configuration for a host without any files, and the directory that all
// its paths are in.
func host(t *testing.T) (c cni.Config, root string) {
	root = t.TempDir()
	return cni.Config{
		ConfDir:      filepath.Join(root, "conf"),
		BinDir:       filepath.Join(root, "bin"),
		PluginSource: filepath.Join(root, "source"),
		Bridge:       "kube-bridge",
		PodCIDRs:     prefixes("10.42.7.0/24", "fd42:7::/64"),
		MTU:          1420,
	}, root
}

func install(t *testing.T, c cni.Config) {
	t.Helper()
	source(t, c, cni.PluginNames()...)
	changes, err := plan(t, c)
	if err != nil {
		t.Fatal(err)
	}
	if err := cni.Apply(changes); err != nil {
		t.Fatal(err)
	}
}

// source makes plugins in PluginSource.
func source(t *testing.T, c cni.Config, names ...string) {
	t.Helper()
	for _, name := range names {
		path := filepath.Join(c.PluginSource, name)
		if _, err := os.Stat(path); err != nil {
			file(t, path, "plugin "+name)
		}
	}
}

func plan(t *testing.T, c cni.Config) ([]cni.Change, error) {
	t.Helper()
	return cni.Plan(c, observe(t, c))
}

func observe(t *testing.T, c cni.Config) cni.Status {
	t.Helper()
	s, err := cni.Observe(c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// snapshot returns the status of all files and directories below root; any write changes
// it.
func snapshot(t *testing.T, root string) map[string]unix.Stat_t {
	t.Helper()
	stats := map[string]unix.Stat_t{}
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var s unix.Stat_t
		if err := unix.Lstat(path, &s); err != nil {
			return err
		}
		s.Atim = unix.Timespec{} // reading is allowed
		stats[path] = s
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return stats
}

func file(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o755); err != nil {
		t.Fatal(err)
	}
}

func link(t *testing.T, target, path string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(target, path); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

func printed(changes []cni.Change, root string) []string {
	var out []string
	for _, c := range changes {
		out = append(out, strings.ReplaceAll(c.String(), root+"/", ""))
	}
	return out
}

func message(err error, root string) string {
	if err == nil {
		return ""
	}
	return strings.ReplaceAll(err.Error(), root+"/", "")
}

// lines splits a raw string into its lines, without their indentation.
func lines(s string) []string {
	var out []string
	for line := range strings.Lines(s) {
		if line = strings.TrimSpace(line); line != "" {
			out = append(out, line)
		}
	}
	return out
}

func prefixes(ss ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range ss {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// SPDX-License-Identifier: Apache-2.0

//go:build !kernel

package e2e

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/gossip"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/test/lab"
)

// TestFaultsAreMended starts a daemon on a host that lacks something. The status says what
// is missing and what to do, and the daemon works as soon as that is done. meshd check
// finds it beforehand.
func TestFaultsAreMended(t *testing.T) {
	t.Parallel()
	nft := program(t, "nft")
	tests := []struct {
		name   string
		config []string
		breaks []string // commands
		mends  []string
		texts  []string // in the status
		what   string   // of check's finding
	}{
		{
			name: "no nft", breaks: []string{"mount --bind /dev/null " + nft}, mends: []string{"umount " + nft},
			texts: []string{"nft is not installed", "apt install nftables"}, what: "nftables",
		},
		{
			name: "device of somebody else", breaks: []string{"ip link add meshd0 type bridge"}, mends: []string{"ip link delete meshd0"},
			texts: []string{"meshd0", "not meshd's", "wireguard.interface"}, what: "links",
		},
		{
			name:   "TUN of somebody else",
			breaks: []string{"ip tuntap add meshd0 mode tun"}, mends: []string{"ip link delete meshd0"},
			texts: []string{"meshd0", "not meshd's", "wireguard.interface"}, what: "links",
		},
		{
			name: "network of somebody else", breaks: []string{"mkdir -p " + lab.ConfDir, "touch " + lab.ConfDir + "/05-other.conflist"},
			mends: []string{"rm " + lab.ConfDir + "/05-other.conflist"}, texts: []string{"05-other.conflist", "remove that network"}, what: "cni",
		},
		{
			name: "no plugins", config: []string{"cni:", "  plugin-source: /opt/plugins"}, mends: []string{"cp -r /usr/lib/cni /opt/plugins"},
			texts: []string{"containernetworking-plugins"}, what: "cni",
		},
		{
			name: "read-only /etc", breaks: []string{"mount --bind /etc /etc", "mount -o remount,bind,ro /etc"}, mends: []string{"umount /etc"},
			texts: []string{lab.ConfDir, "read-only file system"}, what: "cni",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			m := newMesh(t, lab.NAT, 1)
			n := m.nodes[0]
			m.must(n.Configure(lab.Config(n.Name, nil, tt.config...), m.secret))
			m.commands(n, tt.breaks)
			if found := m.check(n); len(found) != 1 || found[0].What != tt.what {
				t.Errorf("errors that check finds: got %+v, want one of %s", found, tt.what)
			}
			m.start(n)
			m.await(settleLimit, fmt.Sprintf("aware of its fault: %q", tt.texts), func(s control.Status) bool { return says(s, tt.texts...) }, n)
			m.commands(n, tt.mends)
			m.await(settleLimit, "well", well, n)
		})
	}
}

// program returns the path of a program, with all symbolic links resolved.
func program(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err == nil {
		path, err = filepath.EvalSymlinks(path)
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// TestRefusesToStart starts a daemon that could only do harm. It exits, and prints what a
// person can do.
func TestRefusesToStart(t *testing.T) {
	t.Parallel()
	identity, node, objects := lab.StateDir+"/identity.json", lab.StateDir+"/node.json", lab.StateDir+"/objects.cbor"
	tests := []struct {
		name  string
		file  string // of a node that has run
		text  string // what is in it now
		texts []string
	}{
		{"identity torn", identity, `{"version": 1, "ed25519-se`, []string{identity, "damaged", "move it away"}},
		{"identity of another program", identity, "PK\x03\x04", []string{identity, "damaged", "move it away"}},
		{"identity from a newer version", identity, `{"version": 99}`, []string{identity, "written by a newer meshd", "install that version again"}},
		{"claim torn", node, "", []string{node, "damaged", "move it away"}},
		{"claim from a newer version", node, `{"version": 99}`, []string{node, "written by a newer meshd", "install that version again"}},
		{"objects from a newer version", objects, "\xa1\x01\x18\x63", []string{objects, "written by a newer meshd", "install that version again"}}, // {1: 99}
		{"no machine-id", "/etc/machine-id", "", []string{"machine-id", "systemd-machine-id-setup"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			m := newMesh(t, lab.NAT, 1)
			n := m.nodes[0]
			m.start(n)
			m.await(settleLimit, "ready", lab.Ready, n)
			m.must(n.Stop())
			before := withoutCarrier(m.hostState(n.Host))
			m.must(n.WriteFile(tt.file, tt.text, 0o600))
			if found := m.check(n); len(found) != 1 || found[0].What != "state" {
				t.Errorf("errors that check finds: got %+v, want one of state", found)
			}
			m.refuses(n, tt.texts...)
			if content := m.run(n, "cat", tt.file); content != tt.text {
				t.Errorf("%s after a start: got %q, want it as it was", tt.file, content)
			}
			if diff := cmp.Diff(before, withoutCarrier(m.hostState(n.Host))); diff != "" {
				t.Errorf("the host after a start (-before +after):\n%s", diff)
			}
		})
	}
}

// TestNoPermission runs a daemon in a user namespace of its own, where it has no
// permissions on the host: as the user nobody, and as root of that namespace.
func TestNoPermission(t *testing.T) {
	t.Parallel()
	m := newMesh(t, lab.NAT, 1)
	n := m.nodes[0]
	before := withoutCarrier(m.hostState(n.Host))
	for _, tt := range []struct {
		name, as, advice string
	}{
		{"nobody", "--map-user=65534", "sudo meshd check"},
		{"root in name", "--map-root-user", "grant the container these capabilities"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := m.in(t)
			found, _ := n.Run(m.ctx, "unshare", "--user", tt.as, binary, "check") // fails if it finds errors
			if !strings.Contains(found, tt.advice) {
				t.Errorf("check: got %s, want %q in it", found, tt.advice)
			}
			_, err := n.Run(m.ctx, "unshare", "--user", tt.as, binary, "run")
			const want = "meshd needs CAP_NET_ADMIN on this host: run it as root"
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("run: got %v, want %q", err, want)
			}
			if diff := cmp.Diff(before, withoutCarrier(m.hostState(n.Host))); diff != "" {
				t.Errorf("the host after a start (-before +after):\n%s", diff)
			}
		})
	}
}

// TestFullDisk fills the disk of a running node. The mesh goes on and accepts a new node;
// after a restart the old state is intact.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	m := newMesh(t, lab.NAT, 4)
	n := m.nodes[0]
	m.run(n, "mkdir", "-p", lab.StateDir)
	m.run(n, "mount", "-t", "tmpfs", "-o", "size=256k", "none", lab.StateDir)
	m.start(m.nodes[:2]...)
	before := addresses(t, m.settle(settleLimit, m.nodes[:2]...))
	m.connected(pingLimit, m.nodes[:2]...)

	// If a file is replaced meanwhile, the old file's space becomes free. So the disk is
	// full only if no file was being replaced while it was filled.
	m.run(n, "sh", "-c", `cd "$1"; until ! ls .*.tmp && test "$(stat -f -c %f .)" = 0; do cat /dev/zero >> fill || :; done 2>&1`, "sh", lab.StateDir)
	m.start(m.nodes[2])
	m.await(settleLimit, "aware of its full disk", func(s control.Status) bool { return says(s, lab.StateDir, "no space left on device") }, n)
	m.start(m.nodes[3])
	m.settle(settleLimit, m.nodes...)
	m.connected(pingLimit, m.nodes...)
	if strings.Contains(n.Log(), "works again") {
		t.Error("log while the disk is full: got that reconcile works again, want an error that stays")
	}

	m.run(n, "rm", lab.StateDir+"/fill")
	m.await(settleLimit, "well", well, n)
	m.must(n.Stop())
	m.start(n)
	after := addresses(t, m.settle(settleLimit, m.nodes...))
	for _, a := range before {
		if !slices.Contains(after, a) {
			t.Errorf("addresses after the disk was full: got %q, want %s among them", after, a)
		}
	}
}

func TestWrongSecretLearnsNothing(t *testing.T) {
	onUnderlays(t, func(t *testing.T, u lab.Underlay) {
		m := newMesh(t, u, 3)
		members, stranger := m.nodes[:2], m.nodes[2]
		other, err := stranger.NewSecret(m.ctx)
		m.must(err)
		m.must(stranger.Configure(lab.Config(stranger.Name, []string{members[0].Public().String()}), other))
		m.start(m.nodes...)
		m.settle(settleLimit, members...)
		s := m.await(settleLimit, "aware that its secret is another", wrongSecret, stranger)[0]
		if len(s.Peers) > 0 {
			t.Errorf("the stranger knows peers: %+v", s.Peers)
		}
		for _, n := range members {
			s, err := n.Status(m.ctx)
			m.must(err)
			if len(s.Peers) != 1 {
				t.Errorf("peers of %s: got %+v, want the other member alone", n.Name, s.Peers)
			}
		}
	})
}

// TestControlSocketAnswersWhileReconcileFails puts a file where the CNI
// configuration directory has to be.
func TestControlSocketAnswersWhileReconcileFails(t *testing.T) {
	t.Parallel()
	m := newMesh(t, lab.NAT, 1)
	n := m.nodes[0]
	m.must(n.WriteFile(lab.ConfDir, "in the way\n", 0o644))
	m.start(n)
	failing := func(s control.Status) bool { return s.Reconcile.Error != "" }
	m.await(settleLimit, "failing to reconcile", failing, n)

	sockets := m.run(n, "find", lab.RunDir, "-type", "s", "-printf", "%m %u\n")
	if sockets != "600 root\n" {
		t.Errorf("control socket: got mode and owner %q, want 600 root", sockets)
	}
	m.run(n, "rm", lab.ConfDir)
	m.await(settleLimit, "ready without error", func(s control.Status) bool { return lab.Ready(s) && !failing(s) }, n)
}

// wrongSecret reports whether a person would learn from the status that the
// secret is wrong, and what to do.
func wrongSecret(s control.Status) bool {
	return slices.ContainsFunc(s.Problems, func(p mesh.Problem) bool {
		return p.Kind == gossip.ProblemSecret && strings.Contains(p.Text, "secret") && strings.Contains(p.Advice, "same secret")
	})
}

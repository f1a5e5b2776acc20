// SPDX-License-Identifier: Apache-2.0

//go:build !kernel

package e2e

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/meshd/meshd/test/lab"
)

func TestCheckOfACleanHost(t *testing.T) {
	onUnderlays(t, func(t *testing.T, u lab.Underlay) {
		m := newMesh(t, u, 2)
		for _, n := range m.nodes {
			before := m.everything(n)
			if found := m.check(n); found != nil {
				t.Errorf("errors on %s: got %+v, want none", n.Name, found)
			}
			if diff := cmp.Diff(before, m.everything(n)); diff != "" {
				t.Errorf("%s after check (-before +after):\n%s", n.Name, diff)
			}
		}
		table := m.run(m.nodes[0], binary, "check")
		for _, want := range []string{"ok ", "firewall", "lets through what the mesh needs"} {
			if !strings.Contains(table, want) {
				t.Errorf("check: got %s, want %q in it", table, want)
			}
		}
	})
}

// TestCheckBesideADaemon checks that meshd check reports neither what a running daemon
// has configured nor what a stopped one leaves behind.
func TestCheckBesideADaemon(t *testing.T) {
	onUnderlays(t, func(t *testing.T, u lab.Underlay) {
		m := settledMesh(t, u, 2)
		m.connected(pingLimit, m.nodes...)
		n := m.nodes[1]
		m.pod(n, "one")
		before := m.hostState(n.Host)
		if found := m.check(n); found != nil {
			t.Errorf("errors beside a daemon: got %+v, want none", found)
		}
		if diff := cmp.Diff(before, m.hostState(n.Host)); diff != "" {
			t.Errorf("the host after check (-before +after):\n%s", diff)
		}
		if table := m.run(n, binary, "check"); !strings.Contains(table, "all 1 answer") {
			t.Errorf("check: got %s, want the join list answered", table)
		}
		m.must(n.Stop())
		if found := m.check(n); found != nil {
			t.Errorf("errors after a daemon: got %+v, want none", found)
		}
	})
}

// TestCheckFinds breaks a host in several ways, one after another.
func TestCheckFinds(t *testing.T) {
	t.Parallel()
	noPrograms := t.TempDir()
	located := []string{"  location: aws", "cluster: {mode: location}"}
	tests := []struct {
		name     string
		underlay lab.Underlay // NAT if it is ""
		config   []string     // further lines
		breaks   []string     // commands
		env      string
		what     string
		text     string // a part of it
		advice   string // a part of it
		undo     bool   // the advice is commands that put it right
	}{
		{name: "foreign device", breaks: []string{"ip link add meshd0 type bridge"}, what: "links", text: "a link meshd0 which is not meshd's", advice: "ip link delete meshd0"},
		{name: "foreign tun", breaks: []string{"ip tuntap add meshd0 mode tun"}, what: "links", text: "a link meshd0 which is not meshd's", advice: "wireguard.interface"},
		{name: "foreign vxlan device", config: located, breaks: []string{"ip link add meshd0-vx type bridge"}, what: "links", text: "a link meshd0-vx which is not meshd's", advice: "ip link delete meshd0-vx"},
		{name: "taken vxlan port", config: located, breaks: []string{"ip link add theirs type vxlan id 5 dstport 7947", "ip link set theirs up"}, what: "ports", text: "UDP port 7947", advice: "cluster.encapsulation"},
		{name: "location without a network", config: located, underlay: lab.Routed, what: "location", text: "no private address", advice: "node.internal-ip"},
		{name: "bridge that is none", breaks: []string{"ip tuntap add kube-bridge mode tap"}, what: "links", text: "kube-bridge", advice: "cni.bridge"},
		{name: "IPv6 off", config: dualStack, breaks: []string{"sysctl -q -w net.ipv6.conf.all.disable_ipv6=1"}, what: "kernel", text: "IPv6 is off", advice: "disable_ipv6=0"},
		{name: "overlapping IPv6 route", config: dualStack, breaks: []string{"ip -6 route add fd00:42::/64 dev " + lab.HostLink}, what: "ranges", text: "cluster.pods fd00:42::/48 overlaps fd00:42::/64", advice: "another range for cluster.pods"},
		{name: "nft drops", breaks: []string{"nft add table inet filter", "nft add chain inet filter through { type filter hook forward priority 0 ; policy drop ; }"}, what: "firewall", text: "through of nft table inet filter drops", advice: "nft insert rule inet filter through iifname meshd0 accept", undo: true},
		{name: "nft closes the ports", breaks: []string{"nft add table ip mine", "nft add chain ip mine in { type filter hook input priority 0 ; }", "nft add rule ip mine in iif lo accept", "nft add rule ip mine in reject"}, what: "firewall", text: "in of nft table ip mine drops", advice: "nft insert rule ip mine in udp dport 51820 accept", undo: true},
		{name: "overlap", breaks: []string{"ip address add 10.42.7.1/24 dev lo"}, what: "ranges", text: "cluster.pods 10.42.0.0/16 overlaps 10.42.7.0/24", advice: "another range for cluster.pods"},
		{name: "overlapping route", breaks: []string{"ip route add 10.4.0.0/20 dev " + lab.HostLink}, what: "ranges", text: "cluster.overlay 10.4.0.0/16 overlaps 10.4.0.0/20", advice: "another range for cluster.overlay"},
		{name: "no nft", env: "PATH=" + noPrograms, what: "nftables", text: "nft is not installed", advice: "apt install nftables"},
		{name: "open secret", breaks: []string{"chmod 644 " + lab.SecretPath}, what: "configuration", text: "is open to other users", advice: "chmod 600 " + lab.SecretPath, undo: true},
		{name: "foreign conflist", breaks: []string{"mkdir -p " + lab.ConfDir, "touch " + lab.ConfDir + "/05-other.conflist"}, what: "cni", text: "05-other.conflist", advice: "remove that network"},
		{name: "file where a directory has to be", breaks: []string{"mkdir -p " + filepath.Dir(lab.ConfDir), "touch " + lab.ConfDir}, what: "cni", text: lab.ConfDir + " can't be written to", advice: "writable"},
		{name: "no machine-id", breaks: []string{"rm /etc/machine-id"}, what: "state", text: "/etc/machine-id", advice: "systemd-machine-id-setup"},
		{name: "damaged state", breaks: []string{"mkdir -p " + lab.StateDir, "touch " + lab.StateDir + "/identity.json"}, what: "state", text: "identity.json", advice: "move it away"},
		{name: "read-only state", breaks: []string{"mkdir -p " + lab.StateDir, "mount -t tmpfs -o ro none " + lab.StateDir}, what: "state", text: "read-only file system", advice: "writable"},
		{name: "full disk", breaks: []string{"mkdir -p " + lab.StateDir, "mount -t tmpfs -o size=64k none " + lab.StateDir}, what: "state", text: "64 KiB of disk space left", advice: "free some space"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			underlay := lab.NAT
			if tt.underlay != "" {
				underlay = tt.underlay
			}
			m := newMesh(t, underlay, 1)
			n := m.nodes[0]
			m.must(n.Configure(lab.Config(n.Name, nil, tt.config...), m.secret))
			for _, command := range tt.breaks {
				words := strings.Fields(command)
				m.run(n, words[0], words[1:]...)
			}
			var env []string
			if tt.env != "" {
				env = append(env, tt.env)
			}
			before := m.everything(n)
			found := m.check(n, env...)
			if len(found) != 1 || found[0].What != tt.what || !strings.Contains(found[0].Text, tt.text) || !strings.Contains(found[0].Advice, tt.advice) {
				t.Errorf("errors: got %+v, want one of %s with %q and %q", found, tt.what, tt.text, tt.advice)
			}
			if diff := cmp.Diff(before, m.everything(n)); diff != "" {
				t.Errorf("the host after check (-before +after):\n%s", diff)
			}
			if tt.undo && len(found) == 1 {
				m.follow(n, found[0].Advice)
				if found := m.check(n); found != nil {
					t.Errorf("errors after the advice was taken: got %+v, want none", found)
				}
			}
		})
	}
}

// TestCheckFindsTakenPorts has another program listen on each port.
func TestCheckFindsTakenPorts(t *testing.T) {
	t.Parallel()
	m := newMesh(t, lab.NAT, 1)
	n := m.nodes[0]
	for _, tt := range []struct {
		name   string
		listen func() (interface{ Close() error }, error)
	}{
		{"UDP port 51820", func() (interface{ Close() error }, error) { return net.ListenPacket("udp4", "127.0.0.1:51820") }},
		{"UDP port 7946", func() (interface{ Close() error }, error) { return net.ListenPacket("udp", ":7946") }},
		{"TCP port 7946", func() (interface{ Close() error }, error) { return net.Listen("tcp", ":7946") }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := m.in(t)
			var taken interface{ Close() error }
			m.must(n.Do(func() (err error) { taken, err = tt.listen(); return err }))
			// A socket that was closed may still be in a process that has just been forked.
			m.eventually(settleLimit, func() error {
				if found := m.check(n); len(found) != 1 || found[0].What != "ports" || !strings.Contains(found[0].Text, tt.name) {
					return fmt.Errorf("errors: got %+v, want one about %s", found, tt.name)
				}
				return nil
			})
			m.must(taken.Close())
		})
	}
	m.eventually(settleLimit, func() error {
		if found := m.check(n); found != nil {
			return fmt.Errorf("errors when all ports are free: got %+v, want none", found)
		}
		return nil
	})
}

// TestCheckFindsMissingPlugins configures a plugin source without plugins.
func TestCheckFindsMissingPlugins(t *testing.T) {
	t.Parallel()
	m := newMesh(t, lab.NAT, 1)
	n := m.nodes[0]
	m.must(n.Configure(lab.Config(n.Name, nil, "cni:", "  plugin-source: /usr/lib/none"), m.secret))
	found := m.check(n)
	if len(found) != 1 || found[0].What != "cni" || !strings.Contains(found[0].Advice, "containernetworking-plugins") {
		t.Errorf("errors: got %+v, want one that names containernetworking-plugins", found)
	}
	for _, name := range []string{"bridge", "host-local", "loopback", "portmap"} {
		m.must(n.WriteFile(filepath.Join("/opt/cni/bin", name), "#!/bin/sh\n", os.FileMode(0o755)))
	}
	if found := m.check(n); found != nil {
		t.Errorf("errors with plugins of somebody else: got %+v, want none", found)
	}
}

// TestCheckOfABadConfiguration checks the exit code, which is that of all commands.
func TestCheckOfABadConfiguration(t *testing.T) {
	t.Parallel()
	m := newMesh(t, lab.NAT, 1)
	n := m.nodes[0]
	m.must(n.Configure(lab.Config(n.Name, nil, "nodes: {}"), m.secret))
	_, err := n.Meshd(m.ctx, "check")
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 2 || !strings.Contains(fmt.Sprint(err), "nodes") {
		t.Errorf("check: got %v, want exit code 2 and the key nodes", err)
	}
}

// files lists all files in the directories that meshd writes to.
func (m *testbed) files(n *lab.Node) string {
	m.t.Helper()
	return m.run(n, "find", "/etc", "/opt", "/run", "/var/lib", "-xdev", "-not", "-path", "/run/lab*", "-printf", "%p %m %s %T@ %l\n")
}

func (m *testbed) everything(n *lab.Node) map[string]string {
	m.t.Helper()
	state := maps.Clone(m.hostState(n.Host))
	state["files"] = m.files(n)
	state["sysctl"] = m.run(n, "sysctl", "-a", "-r", `^net\.(ipv[46]\.conf|ipv4\.ip_forward|bridge)`)
	return state
}

// TestCheckGreets has a host look whether a running mesh would take it. It is in no node's list afterwards.
func TestCheckGreets(t *testing.T) {
	t.Parallel()
	m := newMesh(t, lab.NAT, 2)
	first, second := m.nodes[0], m.nodes[1]
	m.must(first.Configure(lab.Config(first.Name, nil), m.secret))
	m.must(first.Start())
	m.await(settleLimit, "ready", lab.Ready, first)
	join := []string{first.Public().String()}
	other, err := second.NewSecret(m.ctx)
	m.must(err)
	for _, tt := range []struct {
		name, config, secret string
		what, text           string // of the only error; "" for none
	}{
		{"well", lab.Config(second.Name, join), m.secret, "", ""},
		{"another secret", lab.Config(second.Name, join), other, "join[0]", "has another secret"},
		{"another range", lab.Config(second.Name, join, "cluster: {pods: [10.99.0.0/16]}"), m.secret, "join[0]", "cluster.pods is [10.99.0.0/16] here, [10.42.0.0/16] on"},
		{"a taken name", lab.Config(first.Name, join), m.secret, "taken", "the name " + first.Name + " is that of node " + first.Name},
	} {
		m.must(second.Configure(tt.config, tt.secret))
		found := m.check(second)
		if tt.what == "" && len(found) > 0 || tt.what != "" && (len(found) != 1 || found[0].What != tt.what || !strings.Contains(found[0].Text, tt.text)) {
			t.Errorf("%s: got %+v, want one error of %s with %q", tt.name, found, tt.what, tt.text)
		}
	}
	s, err := first.Status(m.ctx)
	m.must(err)
	if len(s.Peers) > 0 {
		t.Errorf("%s knows %+v, want nobody", first.Name, s.Peers)
	}
}

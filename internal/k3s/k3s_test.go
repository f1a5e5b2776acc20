// SPDX-License-Identifier: Apache-2.0

package k3s

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/meshd/meshd/internal/mesh"
)

func prefixes(ss ...string) (ps []netip.Prefix) {
	for _, s := range ss {
		ps = append(ps, netip.MustParsePrefix(s))
	}
	return ps
}

func wanted(role Role) Wanted {
	return Wanted{
		Role: role, Overlay: []netip.Addr{netip.MustParseAddr("10.4.0.1"), netip.MustParseAddr("fd04::1")},
		Cluster: mesh.Cluster{
			Pods: prefixes("10.42.0.0/16", "fd42::/48"), Services: prefixes("10.43.0.0/16", "fd43::/112"),
			DNS: mesh.DNS{Address: netip.MustParseAddr("10.43.0.10"), Domain: "cluster.local"},
		},
	}
}

func TestRender(t *testing.T) {
	const head = "# Written by meshd, because k3s.write-config is true in /etc/meshd.yaml.\n" +
		"# What is changed here is lost; files with higher names count more.\n" +
		"node-ip: \"10.4.0.1,fd04::1\"\n"
	const server = head + `flannel-backend: "none"
advertise-address: "10.4.0.1"
bind-address: "10.4.0.1"
cluster-cidr: "10.42.0.0/16,fd42::/48"
service-cidr: "10.43.0.0/16,fd43::/112"
cluster-dns: "10.43.0.10"
cluster-domain: "cluster.local"
kube-proxy-arg+: "nodeport-addresses=primary"
`
	for role, want := range map[Role]string{Agent: head, Unknown: head, Server: server} {
		if diff := cmp.Diff(want, string(render(wanted(role)))); diff != "" {
			t.Errorf("file for role %q (-want +got):\n%s", role, diff)
		}
	}
}

// put writes a file below root.
func put(t *testing.T, root, path, text string) {
	t.Helper()
	path = filepath.Join(root, path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestWrite(t *testing.T) {
	root := t.TempDir()
	write := func(w Wanted, want bool) {
		t.Helper()
		if differs, err := Differs(root, w); differs != want || err != nil {
			t.Errorf("differs: got %t, %v, want %t", differs, err, want)
		}
		if changed, err := Write(root, w); changed != want || err != nil {
			t.Errorf("write: got %t, %v, want %t", changed, err, want)
		}
	}
	write(wanted(Agent), true)
	write(wanted(Agent), false)
	write(wanted(Server), true)
	info, err := os.Stat(filepath.Join(root, DropIn))
	if err != nil || info.Mode() != fileMode {
		t.Errorf("got %v, %v, want mode %v", info.Mode(), err, os.FileMode(fileMode))
	}
	for _, want := range []bool{true, false} {
		if removed, err := Remove(root); removed != want || err != nil {
			t.Errorf("remove: got %t, %v, want %t", removed, err, want)
		}
	}
	put(t, root, DropIn, "node-ip: 10.4.0.9\n")
	if changed, err := Write(root, wanted(Agent)); changed || !errors.Is(err, errForeign) {
		t.Errorf("a file that is not meshd's: got %t, %v, want an error", changed, err)
	}
	if removed, err := Remove(root); removed || err != nil {
		t.Errorf("a file that is not meshd's: got %t, %v, want it unchanged", removed, err)
	}
}

func TestRoleOf(t *testing.T) {
	for _, want := range []Role{Unknown, Server, Agent} {
		root := t.TempDir()
		if want != Unknown {
			put(t, root, units[want], "")
		}
		if got := RoleOf(root); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// unit is a unit file as k3s's installer writes it.
const unit = `[Service]
Type=notify
ExecStartPre=-/sbin/modprobe overlay
ExecStart=/usr/local/bin/k3s \
    server \
	'--node-ip=192.0.2.1' \
	'--tls-san' \
	'a.example.com' \
	'--tls-san' \
	'b.example.com' \
	'--cluster-init' \
	'--flannel-backend=none' \

Restart=always
`

func TestLook(t *testing.T) {
	root := t.TempDir()
	check := func(want Settings) {
		t.Helper()
		got, err := ReadSettings(root)
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("%v, settings (-want +got):\n%s", err, diff)
		}
	}
	check(Settings{Values: map[string]Value{}})
	const late, early = "/etc/rancher/k3s/config.yaml.d/20-own.yaml", "/etc/rancher/k3s/config.yaml.d/05-own.yaml"
	put(t, root, configFile, "node-ip: 10.4.0.1\ncluster-cidr: [10.42.0.0/16, \"fd42::/48\"]\nkube-proxy-arg: a=b\ncluster-init: true\n")
	put(t, root, early, "service-cidr: 10.43.0.0/16\n")
	put(t, root, late, "kube-proxy-arg+: [c=d]\nnode-ip: 10.4.0.2\n")
	files := map[string]Value{
		"node-ip": {"10.4.0.2", late}, "cluster-cidr": {"10.42.0.0/16,fd42::/48", configFile}, "kube-proxy-arg": {"a=b,c=d", late},
		"cluster-init": {"true", configFile}, "service-cidr": {"10.43.0.0/16", early},
	}
	check(Settings{Values: files})
	put(t, root, units[Server], unit)
	files["node-ip"] = Value{"192.0.2.1", units[Server]}
	files["tls-san"] = Value{"a.example.com,b.example.com", units[Server]}
	files["cluster-init"] = Value{"", units[Server]}
	files["flannel-backend"] = Value{"none", units[Server]}
	check(Settings{Role: Server, Values: files})

	with := Settings{Role: Server, Values: files}.With(wanted(Server)).Values
	for key, want := range map[string]Value{
		"node-ip":           files["node-ip"],                               // the command line counts most
		"cluster-cidr":      {"10.42.0.0/16,fd42::/48", DropIn},             // ours comes after k3s's own file
		"service-cidr":      {"10.43.0.0/16,fd43::/112", DropIn},            // and after files with lower names
		"advertise-address": {"10.4.0.1", DropIn},                           // new
		"tls-san":           {"a.example.com,b.example.com", units[Server]}, // none of our business
	} {
		if got := with[key]; got != want {
			t.Errorf("%s with our file: got %v, want %v", key, got, want)
		}
	}
	put(t, root, late, "node-ip: [\n")
	if _, err := ReadSettings(root); err == nil {
		t.Error("a file that is not YAML is accepted")
	}
}

// SPDX-License-Identifier: Apache-2.0

package k3s

import (
	"crypto/ed25519"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"math/big"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

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
		"# What is changed here is lost; files with higher names count more.\n"
	const host = head + `node-ip: "10.4.0.1,fd04::1"
bind-address: "10.4.0.1"
kube-proxy-arg+: ["nodeport-addresses=primary"]
`
	const zone = `node-label+: ["topology.kubernetes.io/zone=aws"]
`
	const cluster = `flannel-backend: "none"
cluster-cidr: "10.42.0.0/16,fd42::/48"
service-cidr: "10.43.0.0/16,fd43::/112"
cluster-dns: "10.43.0.10"
cluster-domain: "cluster.local"
`
	const wan = `etcd-arg+: ["heartbeat-interval=250", "election-timeout=4750"]
`
	const advertise = "advertise-address: \"10.4.0.1\"\n"
	for _, tt := range []struct {
		name string
		w    Wanted
		want string
	}{
		{"agent", wanted(Agent), host},
		{"unknown role", wanted(Unknown), host},
		{"server", wanted(Server), host + advertise + cluster},
		{"agent in a location", wanted(Agent).in("aws"), host + zone},
		{"server in a location", wanted(Server).in("aws"), host + zone + advertise + cluster},
		{"server with others in several places", wanted(Server).withEtcd(mesh.EtcdWAN), host + advertise + cluster + wan},
		{"server with others nearby", wanted(Server).withEtcd(mesh.EtcdLAN), host + advertise + cluster},
		{"agent of theirs", wanted(Agent).withEtcd(mesh.EtcdWAN), host},
		{"server whose address is not known", Wanted{Role: Server, Cluster: wanted(Server).Cluster}, head + cluster},
	} {
		if diff := cmp.Diff(tt.want, string(render(tt.w))); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}

// in returns what is wanted in a location.
func (w Wanted) in(location string) Wanted {
	w.Zone = location
	return w
}

// withEtcd returns what is wanted with these timings.
func (w Wanted) withEtcd(t mesh.EtcdTimings) Wanted {
	w.Etcd = t
	return w
}

// TestEtcdArgs keeps the timings within what etcd accepts (tuning, in its documentation), and
// within the time that Kubernetes can do without.
func TestEtcdArgs(t *testing.T) {
	if wanElection < 10*wanHeartbeat || wanElection > 50*time.Second || wanElection%wanHeartbeat != 0 {
		t.Errorf("heartbeat %v and election %v: got no ten to a timeout, or parts of one", wanHeartbeat, wanElection)
	}
	const roundTrips = 4 * 80 * time.Millisecond
	if latest := 2*wanElection - wanHeartbeat + roundTrips; latest >= 10*time.Second {
		t.Errorf("the last that an election may end: got %v, want less than 10 s", latest)
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
	if changed, err := Write(root, wanted(Agent)); changed || !errors.Is(err, ErrForeign) {
		t.Errorf("a file that is not meshd's: got %t, %v, want an error", changed, err)
	}
	if removed, err := Remove(root); removed || err != nil {
		t.Errorf("a file that is not meshd's: got %t, %v, want it unchanged", removed, err)
	}
}

// TestZone has a node get its location as zone, but only if nobody else has given it one.
func TestZone(t *testing.T) {
	const own = "/etc/rancher/k3s/config.yaml.d/20-own.yaml"
	for _, tt := range []struct {
		name  string
		files map[string]string
		want  bool
	}{
		{"new", nil, true},
		{"another label", map[string]string{own: "node-label+: [a=b]\n"}, true},
		{"zone in a file", map[string]string{own: "node-label: [a=b, topology.kubernetes.io/zone=z]\n"}, false},
		{"zone on the command line", map[string]string{units[Agent]: "[Service]\nExecStart=/usr/local/bin/k3s agent \\\n'--node-label' \\\n'topology.kubernetes.io/zone=z' \\\n"}, false},
		{"registered before, perhaps labelled by kubectl", map[string]string{passwordFile: "secret"}, false},
		{"registered with our zone", map[string]string{passwordFile: "secret", DropIn: mark + "\nnode-label+: topology.kubernetes.io/zone=before\n"}, true},
		{"files that are not YAML", map[string]string{own: "[\n"}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root := t.TempDir()
			for path, text := range tt.files {
				put(t, root, path, text)
			}
			if _, err := Write(root, wanted(Agent).in("aws")); err != nil {
				t.Fatal(err)
			}
			text, err := os.ReadFile(filepath.Join(root, DropIn))
			if got := strings.Contains(string(text), zoneLabel+"=aws"); err != nil || got != tt.want {
				t.Errorf("%v, zone in the file: %t, want %t:\n%s", err, got, tt.want, text)
			}
			if differs, err := Differs(root, wanted(Agent).in("aws")); differs || err != nil {
				t.Errorf("after it was written: differs %t, %v", differs, err)
			}
		})
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
		"node-ip": {"10.4.0.2", late}, "cluster-cidr": {"10.42.0.0/16,fd42::/48", configFile}, "kube-proxy-arg": {"a=b,c=d", configFile},
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
		"node-ip":           files["node-ip"],                                   // the command line counts most
		"cluster-cidr":      {"10.42.0.0/16,fd42::/48", DropIn},                 // ours comes after k3s's own file
		"service-cidr":      {"10.43.0.0/16,fd43::/112", DropIn},                // and after files with lower names
		"advertise-address": {"10.4.0.1", DropIn},                               // new
		"tls-san":           {"a.example.com,b.example.com", units[Server]},     // none of our business
		"kube-proxy-arg":    {"a=b,c=d,nodeport-addresses=primary", configFile}, // a file with a higher name only adds
	} {
		if got := with[key]; got != want {
			t.Errorf("%s with our file: got %v, want %v", key, got, want)
		}
	}
	lists := Settings{Role: Agent, Values: map[string]Value{"kube-proxy-arg": {"a=b", configFile}, "node-label": {"c=d", units[Agent]}}}.With(wanted(Agent).in("aws")).Values
	if got, want := lists["kube-proxy-arg"], (Value{"a=b,nodeport-addresses=primary", configFile}); got != want {
		t.Errorf("a list in k3s's own file with our file: got %v, want %v", got, want)
	}
	const argument, ours = "quota-backend-bytes=1", "heartbeat-interval=250,election-timeout=4750"
	for from, want := range map[string]Value{
		configFile:    {argument + "," + ours, configFile},
		late:          {argument, late},
		units[Server]: {argument, units[Server]},
	} {
		own := Settings{Role: Server, Values: map[string]Value{"etcd-arg": {argument, from}}}
		with := own.With(wanted(Server).withEtcd(mesh.EtcdWAN))
		if got := with.Values["etcd-arg"]; got != want {
			t.Errorf("a list in %s with our file: got %v, want %v", from, got, want)
		}
		if diff := cmp.Diff(with, with.With(wanted(Server).withEtcd(mesh.EtcdWAN))); diff != "" {
			t.Errorf("a list in %s with our file again (-want +got):\n%s", from, diff)
		}
	}
	for _, text := range []string{"node-ip: [\n", "- node-ip\n"} {
		put(t, root, late, text)
		if _, err := ReadSettings(root); err == nil {
			t.Errorf("a file with %q is accepted", text)
		}
	}
}

// TestLists has files set a list and add to it, in the order in which k3s reads them.
func TestLists(t *testing.T) {
	const dir, ours = "/etc/rancher/k3s/config.yaml.d/", "nodeport-addresses=primary"
	for _, tt := range []struct {
		name  string
		files map[string]string
		want  string
		with  string // our file
	}{
		{"none", nil, "", ours},
		{"set before our file", map[string]string{configFile: "kube-proxy-arg: [a, b]\n"}, "a,b", "a,b," + ours},
		{"set after our file", map[string]string{dir + "20.yaml": "kube-proxy-arg: [a]\n"}, "a", "a"},
		{"only added to after our file", map[string]string{dir + "20.yaml": "kube-proxy-arg+: a\n"}, "a", "a," + ours},
		{"added to twice", map[string]string{configFile: "kube-proxy-arg+: a\n", dir + "20.yaml": "kube-proxy-arg+: [b]\n"}, "a,b", "a,b," + ours},
		{"set and added to in one file", map[string]string{dir + "20.yaml": "kube-proxy-arg: a\nkube-proxy-arg+: b\n"}, "a,b", "a,b"},
		{"added to and set in one file", map[string]string{configFile: "kube-proxy-arg+: a\nkube-proxy-arg: b\n"}, "b", "b," + ours},
		{"both endings", map[string]string{dir + "05.yml": "kube-proxy-arg: a\n", dir + "20.YAML": "kube-proxy-arg+: b\n", dir + "06.yaml": "kube-proxy-arg+: c\n"}, "a,c,b", "a,c,b," + ours},
		{"other files", map[string]string{dir + "20.txt": "kube-proxy-arg: a\n", dir + "20.yaml/a.yaml": "kube-proxy-arg: b\n"}, "", ours},
		{"empty", map[string]string{configFile: "kube-proxy-arg:\n", dir + "20.yaml": "", dir + "25.yaml": "---\n# none\n", dir + "30.yaml": "kube-proxy-arg+: a\n"}, "a", "a," + ours},
		{"nothing but empty", map[string]string{configFile: "kube-proxy-arg:\n"}, "", ours},
		{"our file", map[string]string{DropIn: "kube-proxy-arg+: " + ours + "\n", dir + "20.yaml": "kube-proxy-arg+: a\n"}, ours + ",a", ours + ",a"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root := t.TempDir()
			for path, text := range tt.files {
				put(t, root, path, text)
			}
			s, err := ReadSettings(root)
			if got := s.Values["kube-proxy-arg"].Text; err != nil || got != tt.want {
				t.Errorf("got %q, %v, want %q", got, err, tt.want)
			}
			if got := s.With(wanted(Agent)).Values["kube-proxy-arg"].Text; got != tt.with {
				t.Errorf("with our file: got %q, want %q", got, tt.with)
			}
		})
	}
}

// TestServer has agents, and servers other than the first, be told which server to join.
func TestServer(t *testing.T) {
	for _, role := range []Role{Agent, Server} {
		root := t.TempDir()
		put(t, root, units[role], "[Service]\nExecStart=/usr/local/bin/k3s "+string(role)+"\n")
		put(t, root, environmentFile(role), "K3S_TOKEN='t'\nK3S_URL='https://192.0.2.1:6443'\n")
		server := func(want Value) {
			t.Helper()
			if s, err := ReadSettings(root); err != nil || s.Values["server"] != want {
				t.Errorf("%s: got %v, %v, want %v", role, s.Values["server"], err, want)
			}
		}
		server(Value{"https://192.0.2.1:6443", environmentFile(role)})
		put(t, root, configFile, "server: https://10.4.0.1:6443\n")
		server(Value{"https://10.4.0.1:6443", configFile})
	}
}

func TestRunsEtcd(t *testing.T) {
	for _, tt := range []struct {
		name, path, text string
		want             bool
	}{
		{"alone, or with others", configFile, "cluster-init: true\n", true},
		{"with etcd on all servers", configFile, "disable-etcd: false\n", true},
		{"without etcd on this one", configFile, "disable-etcd: true\n", false},
		{"without etcd by a flag", units[Server], "[Service]\nExecStart=/usr/local/bin/k3s server --disable-etcd\n", false},
		{"a database elsewhere", configFile, "datastore-endpoint: postgres://db.example.com/k3s\n", false},
		{"a database elsewhere by a variable", environmentFile(Server), "K3S_DATASTORE_ENDPOINT='postgres://db.example.com/k3s'\n", false},
	} {
		root := t.TempDir()
		put(t, root, units[Server], "[Service]\nExecStart=/usr/local/bin/k3s server\n")
		put(t, root, tt.path, tt.text)
		if s, err := ReadSettings(root); err != nil || s.RunsEtcd() != tt.want {
			t.Errorf("%s: got %t, %v, want %t", tt.name, s.RunsEtcd(), err, tt.want)
		}
	}
}

func TestReadCertificate(t *testing.T) {
	root := t.TempDir()
	s := Settings{Role: Server, Values: map[string]Value{"data-dir": {"/srv/k3s", configFile}}}
	if c, err := ReadCertificate(root, s); err != nil || c.Path != "" {
		t.Errorf("without a file: got %v, %v", c, err)
	}
	const path = "/srv/k3s/server/tls/dynamic-cert.json"
	addrs := []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("10.43.0.1")}
	put(t, root, path, secretWith(t, addrs...))
	c, err := ReadCertificate(root, s)
	if diff := cmp.Diff(Certificate{path, addrs}, c, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); err != nil || diff != "" {
		t.Errorf("%v, certificate (-want +got):\n%s", err, diff)
	}
	for _, text := range []string{"{", "{}", `{"data":{"tls.crt":"AAAA"}}`} {
		put(t, root, path, text)
		if _, err := ReadCertificate(root, s); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: got %v, want an error that names the file", text, err)
		}
	}
}

// secretWith returns a Secret with a certificate for addresses, as k3s keeps it.
func secretWith(t *testing.T, addrs ...netip.Addr) string {
	t.Helper()
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1)}
	for _, a := range addrs {
		template.IPAddresses = append(template.IPAddresses, a.AsSlice())
	}
	der, err := x509.CreateCertificate(nil, template, template, public, private)
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(map[string]any{"kind": "Secret", "data": map[string][]byte{
		"tls.crt": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
	}})
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// SPDX-License-Identifier: Apache-2.0

package config_test

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/meshd/meshd/internal/config"
	"github.com/meshd/meshd/internal/mesh"
)

// head is the first line of every file in the tables, and the only required one.
const head = "secret-file: /etc/meshd/secret\n"

var netipTypes = cmp.Options{
	cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}, netip.AddrPort{}),
	cmpopts.EquateEmpty(),
}

// defaults returns the configuration of a file with head alone.
func defaults() config.Config {
	return config.Config{
		SecretFile: "/etc/meshd/secret",
		Node: config.Node{
			Gateway: mesh.GatewayAuto, Encryption: config.EncryptionAuto, Relay: mesh.RelayAuto, PortMapping: config.PortMappingAuto,
			LinkAccess: []mesh.Access{{Target: mesh.AccessPods}, {Target: mesh.AccessServices}, {Target: mesh.AccessNodes}},
		},
		Cluster: mesh.Cluster{
			Name: "default", Generation: 1, Trust: "open", Mode: mesh.ModeFull, Encapsulation: "always", Gateways: 1,
			Overlay: prefixes("10.4.0.0/16"), Pods: prefixes("10.42.0.0/16"), PodPrefix: []int{24}, Services: prefixes("10.43.0.0/16"),
			DNS: mesh.DNS{Address: netip.MustParseAddr("10.43.0.10"), Domain: "cluster.local"},
		},
		WireGuard: config.WireGuard{Interface: "meshd0", ListenPort: 51820, Implementation: "auto"},
		Gossip:    config.Gossip{Bind: netip.AddrPortFrom(netip.Addr{}, 7946)},
		Probe:     config.Probe{Interval: 250 * time.Millisecond, Misses: 4},
		CNI:       config.CNI{Enabled: true, ConfDir: "/etc/cni/net.d", BinDir: "/opt/cni/bin", PluginSource: "/usr/lib/cni", Bridge: "kube-bridge"},
		K3s:       config.K3s{Role: "auto", Etcd: "lan"},
		Metrics:   config.Metrics{Listen: netip.MustParseAddrPort("127.0.0.1:9586")},

		ForgetAfter: 720 * time.Hour,
	}
}

func prefixes(ss ...string) []netip.Prefix {
	ps := make([]netip.Prefix, len(ss))
	for i, s := range ss {
		ps[i] = netip.MustParsePrefix(s)
	}
	return ps
}

func TestParse(t *testing.T) {
	second := func(n int) *time.Duration { d := time.Duration(n) * time.Second; return &d }
	tests := []struct {
		name string
		file string
		want func(*config.Config) // what differs from the defaults
	}{
		{"defaults", "", func(*config.Config) {}},
		{"empty sections", "node:\ncluster:\n  dns:\ngossip: {}\njoin: []\n", func(*config.Config) {}},
		{"written with carriage returns", "node:\r\n  name: a\r\n", func(c *config.Config) { c.Node.Name = "a" }},
		{"join", `join: [aws.example.com, 203.0.113.7:7950, "2001:db8::7", "[2001:DB8::8]", "[2001:db8::9]:80", my_host, "::ffff:192.0.2.1"]`, func(c *config.Config) {
			c.Join = []config.HostPort{
				{Host: "aws.example.com", Port: 7946},
				{Host: "203.0.113.7", Port: 7950},
				{Host: "2001:db8::7", Port: 7946},
				{Host: "2001:db8::8", Port: 7946},
				{Host: "2001:db8::9", Port: 80},
				{Host: "my_host", Port: 7946},
				{Host: "192.0.2.1", Port: 7946},
			}
		}},
		{"node", `
node:
  name: aws-1.example
  location: "1"
  endpoint: aws.example.com:40000
  internal-ip: 192.168.10.1/24
  gateway: auto
  keepalive: 25s
  pod-cidr: [10.42.7.0/24]
  allowed-location-ips:
    - 192.168.20.0/24
    - fd12::/64
`, func(c *config.Config) {
			c.Node = config.Node{
				Name: "aws-1.example", Location: "1",
				Endpoint:   config.HostPort{Host: "aws.example.com", Port: 40000},
				InternalIP: netip.MustParsePrefix("192.168.10.1/24"),
				Gateway:    mesh.GatewayAuto, Encryption: config.EncryptionAuto, Relay: mesh.RelayAuto, PortMapping: config.PortMappingAuto, Keepalive: second(25),
				PodCIDR: prefixes("10.42.7.0/24"), AllowedLocationIPs: prefixes("192.168.20.0/24", "fd12::/64"),
				LinkAccess: defaults().Node.LinkAccess,
			}
		}},
		{"name that YAML takes for a number", "node: {name: 1e3}", func(c *config.Config) { c.Node.Name = "1e3" }},
		{"keepalive never", "node: {keepalive: 0}", func(c *config.Config) { c.Node.Keepalive = second(0) }},
		{"no internal IP", "node: {internal-ip: none}", func(c *config.Config) { c.Node.InternalIP = mesh.NoInternalIP() }},
		{"internal IP alone in its network", "node: {internal-ip: 172.16.0.4/32}", func(c *config.Config) { c.Node.InternalIP = netip.MustParsePrefix("172.16.0.4/32") }},
		{"endpoint without port", "node: {endpoint: '2001:db8::7'}\nwireguard: {listen-port: 4000}", func(c *config.Config) {
			c.Node.Endpoint = config.HostPort{Host: "2001:db8::7", Port: 4000}
			c.WireGuard.ListenPort = 4000
		}},
		{"cluster", `
cluster:
  name: prod
  generation: 7
  trust: list
  trusted: [00112233445566778899aabbccddeeff, FF000000000000000000000000000000]
  mode: location
  encapsulation: crosssubnet
  gateways: 16
  forget-after: 36h
  overlay: [10.5.0.0/24]
  pods: [10.44.0.0/14]
  pod-prefix: [26]
  services: [10.96.0.0/12]
  dns: {address: 10.96.0.53, domain: k8s.example.}
`, func(c *config.Config) {
			c.Cluster.Name, c.Cluster.Generation = "prod", 7
			c.Cluster.Trust, c.Trusted = mesh.TrustList, []mesh.ID{{0, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff}, {0xff}}
			c.Cluster.Mode, c.Cluster.Encapsulation, c.Cluster.Gateways = mesh.ModeLocation, mesh.EncapsulationCrossSubnet, 16
			c.ForgetAfter = 36 * time.Hour
			c.Cluster.Overlay, c.Cluster.Pods, c.Cluster.PodPrefix = prefixes("10.5.0.0/24"), prefixes("10.44.0.0/14"), []int{26}
			c.Cluster.Services = prefixes("10.96.0.0/12")
			c.Cluster.DNS = mesh.DNS{Address: netip.MustParseAddr("10.96.0.53"), Domain: "k8s.example"}
		}},
		{"two families", `
node: {pod-cidr: ["fd00:42:0:7::/64", 10.42.7.0/24]}
cluster:
  overlay: [10.4.0.0/16, "fd00:4::/112"]
  pods: ["fd00:42::/48", 10.42.0.0/16]
  services: ["fd00:43::/112", 10.43.0.0/16]
`, func(c *config.Config) {
			c.Node.PodCIDR = prefixes("fd00:42:0:7::/64", "10.42.7.0/24")
			c.Cluster.Overlay = prefixes("10.4.0.0/16", "fd00:4::/112")
			c.Cluster.Pods, c.Cluster.PodPrefix = prefixes("fd00:42::/48", "10.42.0.0/16"), []int{64, 24}
			c.Cluster.Services = prefixes("fd00:43::/112", "10.43.0.0/16")
			c.Cluster.DNS.Address = netip.MustParseAddr("fd00:43::a")
		}},
		{"IPv6 alone", `
wireguard: {mtu: 1280}
cluster: {overlay: ["fd00:4::/112"], pods: ["fd00:42::/56"], services: ["fd00:43::/112"]}
`, func(c *config.Config) {
			c.WireGuard.MTU = 1280
			c.Cluster.Overlay, c.Cluster.Pods, c.Cluster.PodPrefix = prefixes("fd00:4::/112"), prefixes("fd00:42::/56"), []int{64}
			c.Cluster.Services = prefixes("fd00:43::/112")
			c.Cluster.DNS.Address = netip.MustParseAddr("fd00:43::a")
		}},
		{"wireguard", "wireguard: {interface: wg-mesh, listen-port: 1, mtu: 8921, implementation: userspace}", func(c *config.Config) {
			c.WireGuard = config.WireGuard{Interface: "wg-mesh", ListenPort: 1, MTU: 8921, Implementation: "userspace"}
		}},
		{"gossip", `gossip: {bind: "[2001:db8::1]:7950", advertise: mesh.example.com}`, func(c *config.Config) {
			c.Gossip.Bind = netip.MustParseAddrPort("[2001:db8::1]:7950")
			c.Gossip.Advertise = config.HostPort{Host: "mesh.example.com", Port: 7950}
		}},
		{"port mapping", "node: {port-mapping: off}", func(c *config.Config) { c.Node.PortMapping = config.PortMappingOff }},
		{"relay", "node: {relay: never}\nrelay: {max-rate: 2500000}", func(c *config.Config) { c.Node.Relay, c.Relay.MaxRate = mesh.RelayNever, 2_500_000 }},
		{"probe", "probe: {interval: 1s, misses: 2}", func(c *config.Config) {
			c.Probe = config.Probe{Interval: time.Second, Misses: 2}
		}},
		{"gateway wish", "node: {gateway: never}\ncluster: {mode: cross, encapsulation: never}", func(c *config.Config) {
			c.Node.Gateway, c.Cluster.Mode, c.Cluster.Encapsulation = mesh.GatewayNever, mesh.ModeCross, mesh.EncapsulationNever
		}},
		{"gossip on every address", `gossip: {bind: "0.0.0.0:7950", advertise: "192.0.2.7:80"}`, func(c *config.Config) {
			c.Gossip.Bind = netip.AddrPortFrom(netip.Addr{}, 7950)
			c.Gossip.Advertise = config.HostPort{Host: "192.0.2.7", Port: 80}
		}},
		{"cni", "cni: {enabled: false, conf-dir: /a/, bin-dir: /b, plugin-source: /c, bridge: br0}", func(c *config.Config) {
			c.CNI = config.CNI{ConfDir: "/a", BinDir: "/b", PluginSource: "/c", Bridge: "br0"}
		}},
		{"metrics elsewhere", "metrics: {listen: \"[::]:80\"}", func(c *config.Config) {
			c.Metrics.Listen = netip.MustParseAddrPort("[::]:80")
		}},
		{"k3s", "k3s: {write-config: true, role: server, etcd: wan}", func(c *config.Config) { c.K3s = config.K3s{WriteConfig: true, Role: "server", Etcd: "wan"} }},
		{"links", "node:\n  links: [/etc/meshd/west.conf, /srv//east-2.conf]\n  link-access: [services, tcp/443@10.42.0.9]\n", func(c *config.Config) {
			c.Node.Links = []string{"/etc/meshd/west.conf", "/srv/east-2.conf"}
			c.Node.LinkAccess = []mesh.Access{{Target: mesh.AccessServices}, {Protocol: "tcp", Port: 443, Prefix: netip.MustParsePrefix("10.42.0.9/32")}}
		}},
		{"no metrics", "metrics: {listen: \"\"}", func(c *config.Config) { c.Metrics.Listen = netip.AddrPort{} }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := config.Parse("meshd.yaml", []byte(head+tt.file))
			if err != nil {
				t.Fatal(err)
			}
			want := defaults()
			tt.want(&want)
			if diff := cmp.Diff(want, got, netipTypes); diff != "" {
				t.Errorf("config (-want +got):\n%s", diff)
			}
		})
	}
}

func TestHostPortString(t *testing.T) {
	for want, h := range map[string]config.HostPort{
		"":                  {},
		"aws.example.com:1": {Host: "aws.example.com", Port: 1},
		"[2001:db8::1]:2":   {Host: "2001:db8::1", Port: 2},
	} {
		if got := h.String(); got != want {
			t.Errorf("%#v: got %q, want %q", h, got, want)
		}
	}
}

func TestLoad(t *testing.T) {
	path, secret := writeConfig(t, ""), filepath.Join(t.TempDir(), "secret")
	write(t, secret, 0o600, "# first\n"+sampleSecret+"\n\n  "+otherSecret+"\r\n")
	write(t, path, 0o644, "secret-file: "+secret+"\n")

	got, err := config.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	want := defaults()
	want.SecretFile = secret
	want.Secrets = config.Secrets{[32]byte([]byte(strings.Repeat("s", 32))), [32]byte([]byte(strings.Repeat("t", 32)))}
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	want.Node.Name = strings.ToLower(host)
	if diff := cmp.Diff(want, got, netipTypes); diff != "" {
		t.Errorf("config (-want +got):\n%s", diff)
	}
}

func TestLoadReportsAllFiles(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	write(t, secret, 0o600, "AAAA\n")
	path := writeConfig(t, "gossip: {bind: 1}\nsecret-file: "+secret+"\n")

	_, err := config.Load(path)
	want := path + `:1: gossip.bind: "1" is not an IP address and a port: write one such as :7946, 192.0.2.1:7946 or [2001:db8::1]:7946` + "\n" +
		secret + ":1: the secret has 3 bytes instead of 32: write 32 random bytes in base64, as meshd secret new prints them"
	if diff := cmp.Diff(want, errorText(err)); diff != "" {
		t.Errorf("error (-want +got):\n%s", diff)
	}
}

func TestLoadWithoutSecretFile(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "secret")
	path := writeConfig(t, "# a comment\nsecret-file: "+missing+"\n")
	_, err := config.Load(path)
	want := path + ":2: secret-file: " + missing + " does not exist: copy it from another node, or for the first node run: meshd secret new --out " + missing
	if diff := cmp.Diff(want, errorText(err)); diff != "" {
		t.Errorf("error (-want +got):\n%s", diff)
	}
}

func TestLoadMissing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "meshd.yaml")
	_, err := config.Load(path)
	if want := path + ": does not exist: run meshd init on the first host of a mesh, and meshd join on the others; or write it, three lines are enough"; errorText(err) != want {
		t.Errorf("got error %v, want %s", err, want)
	}
	if !errors.Is(err, os.ErrNotExist) {
		t.Errorf("errors.Is(%v, os.ErrNotExist) = false, want true", err)
	}
	if _, err := config.Load(t.TempDir()); err == nil {
		t.Error("loading a directory: got no error")
	}
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// writeConfig writes a configuration file and returns its path.
func writeConfig(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "meshd.yaml")
	write(t, path, 0o644, content)
	return path
}

func write(t *testing.T, path string, mode os.FileMode, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil { // whatever the umask is
		t.Fatal(err)
	}
}

// TestInspect has a file with and without errors, and one whose secret is missing.
func TestInspect(t *testing.T) {
	dir := t.TempDir()
	path, secret := filepath.Join(dir, "meshd.yaml"), filepath.Join(dir, "secret")
	for _, tt := range []struct {
		name, text     string
		secret, broken bool
		fails          bool
	}{
		{"sound", "secret-file: " + secret + "\n", true, false, false},
		{"without the secret", "secret-file: " + secret + "\n", false, true, false},
		{"unknown key", "secret-file: " + secret + "\nnode:\n  nam: a\n", false, false, true},
	} {
		if err := errors.Join(os.WriteFile(path, []byte(tt.text), 0o600), os.RemoveAll(secret)); err != nil {
			t.Fatal(err)
		}
		if tt.secret {
			if err := os.WriteFile(secret, []byte(strings.Repeat("secr", 10)+"ets=\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		cfg, broken, err := config.Inspect(path)
		if (len(broken) > 0) != tt.broken || (err != nil) != tt.fails || (cfg.SecretFile == secret) == tt.fails {
			t.Errorf("%s: got %q, broken %v, error %v", tt.name, cfg.SecretFile, broken, err)
		}
		if _, err := config.Load(path); (err != nil) != (tt.broken || tt.fails) {
			t.Errorf("%s: Load: got %v", tt.name, err)
		}
	}
}

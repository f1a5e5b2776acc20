// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/meshd/meshd/internal/config"
	"github.com/meshd/meshd/internal/k3s"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg"
	"github.com/meshd/meshd/internal/node"
	"github.com/meshd/meshd/internal/probe"
	"github.com/meshd/meshd/internal/rotation"
)

func parse(t *testing.T, text string) config.Config {
	t.Helper()
	cfg, err := config.Parse("meshd.yaml", []byte("secret-file: /etc/meshd/secret\n"+text))
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

var compareNet = cmp.Options{
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	cmpopts.IgnoreUnexported(mesh.Record{}),
}

// A node that is revoked says nothing of itself, and needs a device all the same.
func TestDeviceWithoutRecord(t *testing.T) {
	d, _ := neighborhood()
	d.cfg = parse(t, "")
	in := d.input(mesh.View{}, time.Time{})
	in.Facts.MTU = 1500
	m := node.Memory{Handshakes: node.NewHandshakes(nil)}
	if got := m.Configure(in).Settings.MTU; got != 1420 {
		t.Errorf("got MTU %d, want 1420", got)
	}
}

// Of a server of k3s others learn how its etcd is timed, unless its state is elsewhere.
func TestEtcdTimings(t *testing.T) {
	server, elsewhere := k3s.Settings{Role: k3s.Server}, map[string]k3s.Value{"datastore-endpoint": {Text: "postgres://db.example.com/k3s"}}
	for _, tt := range []struct {
		name, config string
		found        k3s.Settings
		want         mesh.EtcdTimings
	}{
		{"no k3s", "", k3s.Settings{}, ""},
		{"an agent", "", k3s.Settings{Role: k3s.Agent}, ""},
		{"a server", "", server, mesh.EtcdLAN},
		{"a server far from others", "k3s: {etcd: wan}", server, mesh.EtcdWAN},
		{"a server before k3s is installed", "k3s: {role: server}", k3s.Settings{}, mesh.EtcdLAN},
		{"a server without etcd", "", k3s.Settings{Role: k3s.Server, Values: elsewhere}, ""},
	} {
		if got := etcdTimings(parse(t, tt.config), tt.found); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
}

func TestNodeConfig(t *testing.T) {
	c := nodeConfig(parse(t, "node: {name: b, location: home, endpoint: a.example.com:443, internal-ip: 192.168.1.6/25, gateway: prefer, keepalive: 10s, pod-cidr: [10.42.7.0/24], allowed-location-ips: [192.168.1.0/24], link-access: [pods]}\n"+
		"cluster: {mode: location}\nwireguard: {listen-port: 4500, mtu: 1300}\ngossip: {bind: ':7000', advertise: 'g.example.com:7001'}"))
	keepalive := 10 * time.Second
	want := node.Config{
		Name: "b", Location: "home", Cluster: c.Cluster, Slot: 7, Gateway: mesh.GatewayPrefer, Relay: mesh.RelayAuto, PortMapping: true,
		Endpoint:   mesh.Endpoint{Host: "a.example.com", Port: 443, Source: mesh.EndpointConfigured},
		InternalIP: netip.MustParsePrefix("192.168.1.6/25"), AllowedLocationIPs: []netip.Prefix{netip.MustParsePrefix("192.168.1.0/24")},
		LinkAccess: []mesh.Access{{Target: mesh.AccessPods}},
		Keepalive:  &keepalive, ListenPort: 4500, MTU: 1300, GossipPort: 7000, GossipAddr: "g.example.com:7001", Interface: "meshd0", Implementation: netcfg.Auto, Pace: probe.Pace{Interval: 250 * time.Millisecond, Misses: 4}, ForgetAfter: 720 * time.Hour, Bridge: "kube-bridge",
	}
	if !reflect.DeepEqual(c, want) || c.Cluster.Mode != mesh.ModeLocation {
		t.Errorf("got %+v, want %+v", c, want)
	}
	cfg := parse(t, "")
	cfg.Secrets = config.Secrets{{1}, {2}}
	if got := nodeConfig(cfg).Secrets; !slices.Equal(got, []mesh.SecretHash{rotation.Hash(cfg.Secrets[0]), rotation.Hash(cfg.Secrets[1])}) {
		t.Errorf("hashes of secrets: got %v", got)
	}
	if c = nodeConfig(parse(t, "")); c.Slot != mesh.None || !c.Encrypted {
		t.Errorf("without anything: got %+v, want no slot, and all encrypted in mode full", c)
	}
}

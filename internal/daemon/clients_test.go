// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/mesh"
)

// clientMesh has a node that strangers reach, one that they don't, and room for two
// clients.
func clientMesh() mesh.Input {
	return mesh.Input{
		Cluster: mesh.Cluster{
			Name: "default", Mode: mesh.ModeFull, Overlay: []netip.Prefix{netip.MustParsePrefix("10.4.0.0/29")},
			Pods: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")}, PodPrefix: []int{24},
		},
		Records: []mesh.Record{
			{Identity: make([]byte, 32), Name: "open", Key: wgtypes.Key{1}, Endpoints: []mesh.Endpoint{{Host: "192.0.2.1", Port: 1}}},
			{Identity: []byte("hidden"), Name: "hidden", Key: wgtypes.Key{2}, Claim: mesh.Claim{Slot: 1}, NAT: true},
		},
	}
}

func TestHostileNewClient(t *testing.T) {
	key := func(n byte) string { return wgtypes.Key{n}.String() }
	taken := mesh.Client{Name: "taken", Key: wgtypes.Key{3}, Index: 1}
	for _, tt := range []struct {
		name    string
		change  func(in *mesh.Input, r *control.ClientRequest)
		refusal string // "" for none
	}{
		{"usual", func(*mesh.Input, *control.ClientRequest) {}, ""},
		{"all that can be asked for", func(_ *mesh.Input, r *control.ClientRequest) {
			r.PresharedKey, r.Access, r.ServiceGateway = key(9), []string{"tcp/443@services", "10.0.0.0/8"}, "open"
		}, ""},
		{"a router", func(_ *mesh.Input, r *control.ClientRequest) {
			r.Networks, r.Offers, r.Endpoint = []string{"192.168.50.0/24"}, []string{"tcp/9100@192.168.50.7"}, "vpn.example.com:51820"
		}, ""},
		{"network", func(_ *mesh.Input, r *control.ClientRequest) { r.Networks = []string{"office"} }, "want an address and a length"},
		{"network with host bits", func(_ *mesh.Input, r *control.ClientRequest) { r.Networks = []string{"192.168.50.1/24"} }, "write 192.168.50.0/24"},
		{"network of the cluster", func(_ *mesh.Input, r *control.ClientRequest) { r.Networks = []string{"10.42.0.0/24"} }, "overlaps the cluster's range"},
		{"link node of another cluster", func(_ *mesh.Input, r *control.ClientRequest) {
			r.Networks, r.Cluster = []string{"10.52.0.0/16"}, "west"
		}, ""},
		{"link node without ranges", func(_ *mesh.Input, r *control.ClientRequest) { r.Cluster = "west" }, "name them with --networks"},
		{"cluster that has no name", func(_ *mesh.Input, r *control.ClientRequest) {
			r.Networks, r.Cluster = []string{"10.52.0.0/16"}, "far west"
		}, `"far west" is not a host name`},
		{"joined cluster with the same pods", func(_ *mesh.Input, r *control.ClientRequest) {
			r.Networks, r.Cluster = []string{"10.42.0.0/16"}, "west"
		}, "of the cluster west, 10.42.0.0/16 overlaps cluster.pods 10.42.0.0/16 of this one"},
		{"offer", func(_ *mesh.Input, r *control.ClientRequest) {
			r.Networks, r.Offers = []string{"192.168.50.0/24"}, []string{"all"}
		}, "want pods, services, nodes"},
		{"endpoint", func(_ *mesh.Input, r *control.ClientRequest) {
			r.Networks, r.Endpoint = []string{"192.168.50.0/24"}, "vpn.example.com"
		}, "want a host and a port"},
		{"no key", func(_ *mesh.Input, r *control.ClientRequest) { r.PublicKey = "x" }, "not a WireGuard public key"},
		{"preshared key", func(_ *mesh.Input, r *control.ClientRequest) { r.PresharedKey = "secret" }, "the preshared key is not a WireGuard key"},
		{"access", func(_ *mesh.Input, r *control.ClientRequest) { r.Access = []string{"all"} }, "want pods, services, nodes"},
		{"name", func(_ *mesh.Input, r *control.ClientRequest) { r.Name = "taken" }, "meshd client remove taken"},
		{"name in another case", func(_ *mesh.Input, r *control.ClientRequest) { r.Name = "TAKEN" }, "there is a client taken"},
		{"name of a node", func(_ *mesh.Input, r *control.ClientRequest) { r.Name = "Open" }, "there is a node open"},
		{"name like a fingerprint", func(_ *mesh.Input, r *control.ClientRequest) { r.Name = mesh.ID{1}.String() }, "looks like a fingerprint"},
		{"no access list", func(_ *mesh.Input, r *control.ClientRequest) { r.Access = nil }, "the access list is empty"},
		{"empty access list", func(_ *mesh.Input, r *control.ClientRequest) { r.Access = []string{} }, "the access list is empty"},
		{"empty access", func(_ *mesh.Input, r *control.ClientRequest) { r.Access = []string{""} }, "want pods, services, nodes"},
		{"default route", func(_ *mesh.Input, r *control.ClientRequest) { r.Access = []string{"0.0.0.0/0"} }, "write internet"},
		{"internet", func(_ *mesh.Input, r *control.ClientRequest) { r.Access = []string{"internet"} }, "set node.exit: true on a node with an endpoint"},
		{"internet through an exit that has no endpoint", func(in *mesh.Input, r *control.ClientRequest) {
			in.Records[1].Exit, r.Access = mesh.ExitFamilies{IPv4: true}, []string{"internet"}
		}, "set node.exit: true on a node with an endpoint"},
		{"internet through an exit", func(in *mesh.Input, r *control.ClientRequest) {
			in.Records[0].Exit, r.Access = mesh.ExitFamilies{IPv4: true}, []string{"pods", "tcp/443@internet"}
		}, ""},
		{"key of a client", func(_ *mesh.Input, r *control.ClientRequest) { r.PublicKey = key(3) }, "client taken has this public key"},
		{"key of a node", func(_ *mesh.Input, r *control.ClientRequest) { r.PublicKey = key(2) }, "node hidden has this public key"},
		{"exhausted", func(in *mesh.Input, _ *control.ClientRequest) {
			in.Clients = append(in.Clients, mesh.Client{Name: "b", Index: 0})
		}, "all 2 addresses for clients are taken"},
		{"gateway that is none", func(_ *mesh.Input, r *control.ClientRequest) { r.ServiceGateway = "hidden" }, "no tunnels to node hidden"},
		{"gateway that nobody knows", func(_ *mesh.Input, r *control.ClientRequest) { r.ServiceGateway = "x" }, "no node is named x"},
		{"no endpoint anywhere", func(in *mesh.Input, _ *control.ClientRequest) { in.Records = in.Records[1:] }, "no node has an endpoint"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			in, r := clientMesh(), control.ClientRequest{Name: "laptop", PublicKey: key(7), Access: []string{"pods"}}
			in.Clients = []mesh.Client{taken}
			tt.change(&in, &r)
			c, err := newClient(in, r, time.UnixMilli(5))
			switch {
			case tt.refusal == "" && (err != nil || c.Cluster != r.Cluster || c.Index != 0 || c.Added != 5 || len(c.Access) == 0):
				t.Errorf("got %+v, %v", c, err)
			case tt.refusal != "" && (err == nil || !strings.Contains(err.Error(), tt.refusal)):
				t.Errorf("got %v, want %q", err, tt.refusal)
			case err != nil && r.PresharedKey != "" && strings.Contains(err.Error(), r.PresharedKey):
				t.Errorf("the error shows a secret: %v", err)
			}
		})
	}
}

func TestClientEndpoint(t *testing.T) {
	for want, list := range map[string][]mesh.Endpoint{
		"192.0.2.1:1":     {{Host: "2001:db8::1", Port: 1}, {Host: "192.0.2.1", Port: 1}},
		"[2001:db8::1]:1": {{Host: "2001:db8::1", Port: 1}},
		"a.example.com:2": {{Host: "192.0.2.1", Port: 1}, {Host: "a.example.com", Port: 2, Source: mesh.EndpointConfigured}},
	} {
		if got := clientEndpoint(list); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

func TestNamedClient(t *testing.T) {
	clients := []mesh.Client{{ID: mesh.ID{1}, Name: "a"}, {ID: mesh.ID{2}, Name: "b"}, {ID: mesh.ID{3}, Name: "b"}}
	if c, err := findClient(clients, "a"); err != nil || c.ID != clients[0].ID {
		t.Errorf("a: got %v, %v", c.ID, err)
	}
	if c, err := findClient(clients, clients[2].ID.String()); err != nil || c.ID != clients[2].ID {
		t.Errorf("an ID: got %v, %v", c.ID, err)
	}
	named := mesh.Client{ID: mesh.ID{9}, Name: clients[0].ID.String()} // an old one
	if c, err := findClient(append([]mesh.Client{named}, clients...), named.Name); err != nil || c.ID != clients[0].ID {
		t.Errorf("an ID that is a name, too: got %v, %v", c.ID, err)
	}
	for _, name := range []string{"b", "c"} {
		if _, err := findClient(clients, name); err == nil {
			t.Errorf("%s: want a refusal", name)
		}
	}
}

// A client that calls ever other nodes silent has few configurations worked out for it.
func TestHostileSilence(t *testing.T) {
	var cache configCache
	worked := 0
	ask := func(client mesh.ID, silent ...mesh.ID) control.ClientConfig {
		return cache.get(client, silent, func(silent []mesh.ID) control.ClientConfig {
			worked++
			return control.ClientConfig{MTU: len(silent)}
		})
	}
	for i := range 1000 {
		ask(mesh.ID{1}, mesh.ID{byte(i), byte(i >> 8)})
	}
	if worked > maxConfigs+1 {
		t.Errorf("worked out %d times, want at most %d", worked, maxConfigs+1)
	}
	if got := ask(mesh.ID{2}, mesh.ID{3}, mesh.ID{4}); got.MTU != 2 {
		t.Errorf("another client: got an answer for %d silent nodes, want 2", got.MTU)
	}
}

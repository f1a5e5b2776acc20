// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"crypto/ed25519"
	"encoding/hex"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/meshd/meshd/internal/mesh"
)

// testClient returns a client with every field set.
func testClient(name string) mesh.Client {
	return mesh.Client{
		Name: name, Key: wgtypes.Key{1, 2}, PresharedKey: mesh.PresharedKey{3}, Index: 77, Added: 1700000000000,
		Access:         []mesh.Access{{Target: mesh.AccessPods}, {Protocol: "tcp", Port: 443, Target: mesh.AccessServices}},
		ServiceGateway: mesh.ID{4},
	}
}

func signClient(t testing.TB, n int, c mesh.Client) []byte {
	t.Helper()
	c.Author = identity(n).Public().(ed25519.PublicKey)
	payload, err := encodeClient(c)
	return signPayload(t, n, kindClient, payload, err)
}

func TestClientGolden(t *testing.T) {
	golden, err := os.ReadFile("testdata/client.hex")
	if err != nil {
		t.Fatal(err)
	}
	raw := signClient(t, 0, testClient("laptop"))
	if got := hex.EncodeToString(raw); got != strings.TrimSpace(string(golden)) {
		t.Errorf("got\n%s\nwant another", got)
	}
	got := mustDecode(t, raw).body.(clientBody).Client
	want := testClient("laptop")
	want.Author, want.ID = identity(0).Public().(ed25519.PublicKey), got.ID
	if d := cmp.Diff(want, got, comparePrefixes); d != "" {
		t.Errorf("client (-want +got):\n%s", d)
	}
}

// testRouter returns a client with networks, and with every field set.
func testRouter(name string) mesh.Client {
	c := testClient(name)
	c.Networks = []netip.Prefix{netip.MustParsePrefix("192.168.50.0/24"), netip.MustParsePrefix("fd50::/48")}
	c.Offers = []mesh.Access{{Protocol: "tcp", Port: 9100, Prefix: netip.MustParsePrefix("192.168.50.7/32")}}
	c.Cluster, c.NoInternalIPs = "west", true
	c.Endpoint = mesh.Endpoint{Host: "vpn.example.com", Port: 51820, Source: mesh.EndpointConfigured}
	return c
}

func TestRouter(t *testing.T) {
	got := mustDecode(t, signClient(t, 0, testRouter("router"))).body.(clientBody).Client
	want := testRouter("router")
	want.Author, want.ID = identity(0).Public().(ed25519.PublicKey), got.ID
	if d := cmp.Diff(want, got, comparePrefixes); d != "" {
		t.Errorf("client (-want +got):\n%s", d)
	}
}

func TestClientRefused(t *testing.T) {
	for what, change := range map[string]func(*mesh.Client){
		"name":      func(c *mesh.Client) { c.Name = "a b" },
		"key":       func(c *mesh.Client) { c.Key = wgtypes.Key{} },
		"index":     func(c *mesh.Client) { c.Index = -1 },
		"time":      func(c *mesh.Client) { c.Added = 0 },
		"no access": func(c *mesh.Client) { c.Access = nil },
		"access":    func(c *mesh.Client) { c.Access = []mesh.Access{{Target: "everything"}} },
		"network":   func(c *mesh.Client) { c.Networks = []netip.Prefix{netip.MustParsePrefix("192.168.50.1/24")} },
		"internet":  func(c *mesh.Client) { c.Networks = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")} },
		"offer":     func(c *mesh.Client) { c.Offers = []mesh.Access{{Target: "everything"}} },
		"networks":  func(c *mesh.Client) { c.Networks = make([]netip.Prefix, mesh.MaxClientNetworks+1) },
		"cluster": func(c *mesh.Client) {
			c.Networks, c.Cluster = []netip.Prefix{netip.MustParsePrefix("192.168.50.0/24")}, "far west"
		},
		"ranges":   func(c *mesh.Client) { c.Cluster = "west" },
		"endpoint": func(c *mesh.Client) { c.Endpoint = mesh.Endpoint{Host: "a b", Port: 1} },
	} {
		c := testClient("laptop")
		change(&c)
		if _, err := decodeObject("default", signClient(t, 0, c)); err == nil {
			t.Errorf("wrong %s: no error", what)
		}
	}
}

// A removed client stays removed, whichever node removed it and in whatever order the
// objects come; its author may be forgotten, but not revoked.
func TestClientIsRemovedForEver(t *testing.T) {
	client := mustDecode(t, signClient(t, 0, testClient("laptop")))
	author, id := client.key.author, client.key.subject
	removal := mustDecode(t, signTombstone(t, 1, id, clientSequence))
	for _, order := range [][]object{{client, removal}, {removal, client}, {client, removal, client}} {
		s := newStore()
		for _, o := range order {
			s.put(o)
		}
		if got := s.clients(); len(got) != 0 {
			t.Errorf("got %v, want none", got)
		}
	}
	s := newStore()
	s.put(client)
	s.put(mustDecode(t, signTombstone(t, 1, author, 9)))
	if len(s.clients()) != 1 {
		t.Error("the client was removed with the record of its author")
	}
	s.put(mustDecode(t, signTombstone(t, 1, author, mesh.Forever)))
	if len(s.clients()) != 0 {
		t.Error("the client of a revoked identity counts")
	}
}

func TestClientsReachAllNodes(t *testing.T) {
	nodes := startCluster(t, 3)
	c, err := nodes[0].AddClient(testClient("laptop"))
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the client is known", nodes, func(v mesh.View) bool { return len(v.Clients) == 1 && v.Clients[0].ID == c.ID })
	if err := nodes[2].RemoveClient(c.ID); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the client is gone", nodes, func(v mesh.View) bool { return len(v.Clients) == 0 })
}

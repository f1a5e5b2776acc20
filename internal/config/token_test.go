// SPDX-License-Identifier: Apache-2.0

package config

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/meshd/meshd/internal/mesh"
)

var comparable = cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}, netip.AddrPort{})

func testToken() Token {
	c := Minimal().Cluster
	c.Name, c.Mode, c.Generation = "prod", mesh.ModeLocation, 3
	c.Pods, c.PodPrefix = []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16"), netip.MustParsePrefix("fd42::/48")}, []int{24, 64}
	c.Overlay = append(c.Overlay, netip.MustParsePrefix("fd04::/112"))
	c.Trust = mesh.TrustList
	return Token{
		Secret: [32]byte{1, 2, 3}, Cluster: c, Trusted: []mesh.ID{{7}, {8}}, Server: netip.MustParseAddr("10.4.0.1"),
		Join: []HostPort{{"aws.example.com", 7946}, {"2001:db8::1", 443}, {"203.0.113.7", 7947}},
	}
}

func TestToken(t *testing.T) {
	want := testToken()
	s, err := want.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if strings.ContainsAny(s, " \n") || len(s) > 1000 {
		t.Errorf("%d characters: %s", len(s), s)
	}
	for _, given := range []string{s, "  " + s + "\n", s[:70] + "\n" + s[70:]} {
		got, err := ParseToken(given)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got, comparable); diff != "" {
			t.Errorf("token (-want +got):\n%s", diff)
		}
	}
	short, err := Token{Secret: [32]byte{1}, Cluster: Minimal().Cluster, Join: want.Join[:1]}.Encode()
	if err != nil || len(short) > 200 {
		t.Errorf("a token of a mesh with the defaults has %d characters, %v", len(short), err)
	}
}

func TestTokenErrors(t *testing.T) {
	s, err := testToken().Encode()
	if err != nil {
		t.Fatal(err)
	}
	for given, want := range map[string]string{
		"":                             "does not begin with meshd1.",
		"K10abc::server:def":           "does not begin with meshd1.",
		s[:len(s)-3]:                   "is not complete",
		s[:90] + "AAA" + s[93:]:        "is not complete",
		TokenPrefix:                    "is not complete",
		TokenPrefix + "!":              "is not complete",
		strings.ToLower(s):             "is not complete",
		"meshd2." + s[len("meshd1."):]: "does not begin with meshd1.",
	} {
		if _, err := ParseToken(given); err == nil || !strings.Contains(err.Error(), want) || len(given) > 20 && strings.Contains(err.Error(), given[10:]) {
			t.Errorf("%q: got %v, want %q", given, err, want)
		}
	}
}

// TestWrite: what is written is read as the same, and has no defaults in it.
func TestWrite(t *testing.T) {
	c := Minimal()
	token := testToken()
	c.SecretFile, c.Join, c.Cluster, c.Trusted = "/etc/meshd/secret", token.Join, token.Cluster, token.Trusted
	c.Node.Name, c.Node.Location, c.Node.Endpoint = "on", "0123", HostPort{"2001:db8::7", 51820} // a boolean and a number for YAML
	c.Node.InternalIP, c.Node.Exit = netip.MustParsePrefix("192.168.1.5/24"), true
	text, err := Write(c)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Parse("", text)
	if err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	if diff := cmp.Diff(c, got, comparable, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("read again (-want +got):\n%s\n%s", diff, text)
	}
	if slices.ContainsFunc([]string{"services", "gateway", "wireguard", "probe"}, func(word string) bool { return strings.Contains(string(text), word) }) {
		t.Errorf("defaults in\n%s", text)
	}
}

// TestSetIsWritten: what --set takes is written as a file has it.
func TestSetIsWritten(t *testing.T) {
	for key, value := range map[string]string{
		"gossip.bind": ":7950", "relay.listen": "[2001:db8::1]:443", "metrics.listen": "192.0.2.1:9586",
		"node.internal-ip": "none", "node.keepalive": "15s", "node.port-mapping": "off", "node.allowed-location-ips": "192.168.20.0/24,192.168.30.0/24",
		"cluster.generation": "7", "cluster.forget-after": "48h", "cluster.dns.address": "10.43.0.53", "wireguard.mtu": "1312", "wireguard.listen-port": "51821",
		"relay.max-rate": "2500000", "probe.interval": "1s", "cni.enabled": "false", "k3s.write-config": "true",
	} {
		c := Minimal()
		if err := Set(&c, key, value); err != nil {
			t.Fatal(err)
		}
		c.SecretFile = secretExample
		text, err := Write(c)
		if err != nil {
			t.Fatal(err)
		}
		got, err := Parse("", text)
		if err != nil {
			t.Errorf("%s=%s: %v in\n%s", key, value, err, text)
			continue
		}
		if diff := cmp.Diff(c, got, comparable, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%s=%s, read again (-want +got):\n%s\n%s", key, value, diff, text)
		}
	}
	for _, key := range []string{"relay.listen", "metrics.listen"} {
		c := Minimal()
		if err := Set(&c, key, ""); err != nil {
			t.Fatal(err)
		}
		if text, err := Write(c); err != nil || strings.Contains(string(text), "invalid") {
			t.Errorf("%s is nowhere: got %v and\n%s", key, err, text)
		}
	}
}

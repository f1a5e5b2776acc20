// SPDX-License-Identifier: Apache-2.0

package portmap

import (
	"errors"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func mapAt(t *testing.T, p *upnp, at netip.Addr) result {
	t.Helper()
	return action{kind: toMap, mapping: wantedAt(at)}.perform(t.Context(), p)
}

func TestUPnP(t *testing.T) {
	first := []string{"GET /description.xml", "GetExternalIPAddress", "GetExternalIPAddress", "GetSpecificPortMappingEntry 51820"}
	for _, tt := range []struct {
		name      string
		router    *igd
		want      string
		permanent bool
		calls     []string // after the first ones
	}{
		{"version 1", &igd{}, "203.0.113.9:51820", false, []string{"AddPortMapping 51820 7200"}},
		{"version 2", &igd{service: "WANIPConnection:2"}, "203.0.113.9:51820", false, []string{"AddPortMapping 51820 7200"}},
		{"PPP", &igd{service: "WANPPPConnection:1"}, "203.0.113.9:51820", false, []string{"AddPortMapping 51820 7200"}},
		{"double NAT", &igd{address: "192.168.0.2"}, "192.168.0.2:51820", false, []string{"AddPortMapping 51820 7200"}},
		{
			"permanent leases only", &igd{lease: map[uint32]int{7200: upnpOnlyPermanent}}, "203.0.113.9:51820", true,
			[]string{"AddPortMapping 51820 7200", "AddPortMapping 51820 0"},
		},
		{
			"permanent leases only, in other words", &igd{lease: map[uint32]int{7200: upnpInvalidArgs}}, "203.0.113.9:51820", true,
			[]string{"AddPortMapping 51820 7200", "AddPortMapping 51820 0"},
		},
		{"ours already", &igd{entries: map[string]string{"51820": "127.0.0.1"}}, "203.0.113.9:51820", false, []string{"AddPortMapping 51820 7200"}},
		{
			"another host's, version 2", &igd{service: "WANIPConnection:2", entries: map[string]string{"51820": "127.0.0.9"}}, "203.0.113.9:40001", false,
			[]string{"AddAnyPortMapping 51820 7200"},
		},
		{
			"conflict, version 2", &igd{service: "WANIPConnection:2", fails: map[string]int{"AddPortMapping": upnpConflict}}, "203.0.113.9:40001", false,
			[]string{"AddPortMapping 51820 7200", "AddAnyPortMapping 51820 7200"},
		},
		{"no entries are told", &igd{fails: map[string]int{"GetSpecificPortMappingEntry": upnpInvalidAction}}, "203.0.113.9:51820", false, []string{"AddPortMapping 51820 7200"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			d := newIGD(t, tt.router)
			p := newUPnP(d.at, loopback, random())
			r := mapAt(t, p, d.at)
			if r.err != nil || r.mapping.External.String() != tt.want || r.mapping.Permanent != tt.permanent {
				t.Fatalf("got %+v, want %s, permanent: %v", r, tt.want, tt.permanent)
			}
			if diff := cmp.Diff(append(first[:len(first):len(first)], tt.calls...), d.takeCalls()); diff != "" {
				t.Errorf("calls (-want +got):\n%s", diff)
			}
			if c := p.Check(t.Context(), r.mapping); c.err != nil || c.reading.gone || c.reading.address != r.mapping.External.Addr() {
				t.Errorf("check: got %+v", c)
			}
			if err := p.Remove(t.Context(), r.mapping); err != nil {
				t.Errorf("remove: %v", err)
			}
			if d.fails == nil {
				if c := p.Check(t.Context(), r.mapping); c.err != nil || !c.reading.gone {
					t.Errorf("check after remove: got %+v, want that it is gone", c)
				}
			}
		})
	}
}

// TestUPnPConflict has a router of version 1, and another host with the port: that one keeps it.
func TestUPnPConflict(t *testing.T) {
	d := newIGD(t, &igd{entries: map[string]string{"51820": "127.0.0.9"}})
	r := mapAt(t, newUPnP(d.at, loopback, random()), d.at)
	if r.err != nil || r.mapping.External.Port() == 51820 || r.mapping.External.Port() < 1<<15 {
		t.Fatalf("got %+v, want another port", r)
	}
	if got := d.entries["51820"]; got != "127.0.0.9" {
		t.Errorf("got %s at the other host's port", got)
	}
	if err := removeOne(t, Mapping{Protocol: UPnP, Gateway: d.at, Internal: netip.AddrPortFrom(loopback, 51820), External: netip.MustParseAddrPort("203.0.113.9:51820")}); err != nil || d.entries["51820"] == "" {
		t.Errorf("remove: got %v, and %v: that one is not ours", err, d.entries)
	}
	d.fails = map[string]int{"AddPortMapping": upnpConflict}
	d.takeCalls()
	if r := mapAt(t, newUPnP(d.at, loopback, random()), d.at); !errors.Is(r.err, errTaken) {
		t.Errorf("got %v, want %v", r.err, errTaken)
	}
}

// removeOne removes one mapping.
func removeOne(t *testing.T, n Mapping) error {
	t.Helper()
	_, err := Remove(t.Context(), []Mapping{n})
	return err
}

func TestUPnPRefuses(t *testing.T) {
	d := newIGD(t, &igd{fails: map[string]int{"AddPortMapping": 606}})
	if r := mapAt(t, newUPnP(d.at, loopback, random()), d.at); codeOf(r.err) != 606 || errors.Is(r.err, errNoAnswer) {
		t.Errorf("got %v, want a refusal", r.err)
	}
}

// TestUPnPRestart has the router come back at another port of HTTP.
func TestUPnPRestart(t *testing.T) {
	d := newIGD(t, &igd{})
	p := newUPnP(d.at, loopback, random())
	r := mapAt(t, p, d.at)
	if r.err != nil {
		t.Fatal(r.err)
	}
	d.server.Close()
	d.serve(t)
	clear(d.entries)
	if c := p.Check(t.Context(), r.mapping); c.err != nil || !c.reading.gone {
		t.Errorf("got %+v, want that the mapping is gone", c)
	}
	d.server.Close()
	if c := p.Check(t.Context(), r.mapping); !errors.Is(c.err, errNoAnswer) {
		t.Errorf("got %v, want %v", c.err, errNoAnswer)
	}
}

// TestHostileUPnP has routers, or others in their name, that lead elsewhere or say too much.
func TestHostileUPnP(t *testing.T) {
	victim := newIGD(t, &igd{})
	elsewhere := victim.server.URL + "/description.xml"
	bomb := `<?xml version="1.0"?><!DOCTYPE root [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]><root><device><friendlyName>&b;</friendlyName></device></root>`
	var ended sync.WaitGroup
	for name, d := range map[string]*igd{
		"description elsewhere":  {location: elsewhere},
		"HTTPS":                  {location: strings.Replace(elsewhere, "http", "https", 1)},
		"a name":                 {location: "http://localhost/description.xml"},
		"a file":                 {location: "file:///etc/passwd"},
		"with a password":        {location: strings.Replace(elsewhere, "http://", "http://a:b@", 1)},
		"redirected":             {redirect: elsewhere},
		"control elsewhere":      {controlURL: victim.server.URL + "/ctl"},
		"control by a name":      {controlURL: "http://localhost/ctl"},
		"no XML":                 {description: "<html><body>Router"},
		"entities":               {description: bomb},
		"deeply nested":          {description: "<root>" + strings.Repeat("<device><deviceList>", 20_000)},
		"long":                   {description: "<root><device><friendlyName>" + strings.Repeat("a", 10<<20)},
		"no services":            {description: "<root><device></device></root>"},
		"external address IPv6":  {address: "2001:db8::1"},
		"external address none":  {address: "0.0.0.0"},
		"external address multi": {address: "224.0.0.1"},
		"external address text":  {address: "\x1b[2J"},
	} {
		d := newIGD(t, d)
		ended.Go(func() { // each takes as long as an answer is waited for
			if r := mapAt(t, newUPnP(d.at, loopback, random()), d.at); !errors.Is(r.err, errNoAnswer) {
				t.Errorf("%s: got %+v, want %v", name, r, errNoAnswer)
			}
		})
	}
	ended.Wait()
	if got := victim.takeCalls(); got != nil {
		t.Errorf("another host than the gateway was asked: %q", got)
	}
}

// TestTwoGateways has another router answer the search, too, before the gateway does.
func TestTwoGateways(t *testing.T) {
	other := newIGD(t, &igd{address: "198.51.100.66"})
	d := newIGD(t, &igd{})
	d.location = "" // its own
	ssdp := d.answer()
	at := newAddr() // the gateway, with both answers
	serveUDP(t, at, ssdpPort, func([]byte) [][]byte { return [][]byte{other.answer(), ssdp} })
	if r := mapAt(t, newUPnP(at, loopback, random()), at); !errors.Is(r.err, errNoAnswer) {
		t.Errorf("got %+v, want %v: both are elsewhere", r, errNoAnswer)
	}
	if r := mapAt(t, newUPnP(d.at, loopback, random()), d.at); r.err != nil || r.mapping.External.Addr() != public {
		t.Errorf("got %+v, want the gateway's address", r)
	}
	if got := other.takeCalls(); got != nil {
		t.Errorf("the other router was asked: %q", got)
	}
}

// FuzzSearch has answers to a search of any kind: whatever they say, they lead to the gateway.
func FuzzSearch(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 OK\r\nLOCATION: http://192.168.1.1:5000/rootDesc.xml\r\n\r\n"))
	f.Add([]byte("HTTP/1.1 200 OK\r\nLocation: http://192.168.1.1@192.0.2.1/\r\n\r\n"))
	f.Add([]byte("NOTIFY * HTTP/1.1\r\nLocation: http://192.168.1.1/\r\n\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		u, err := location(b, gateway)
		if err != nil {
			return
		}
		again, err := url.Parse(u.String())
		if err != nil || again.Scheme != "http" || again.Hostname() != gateway.String() || again.User != nil {
			t.Errorf("%q leads to %s", b, u)
		}
	})
}

// FuzzDescription has descriptions of any kind: what is found in them is at the gateway.
func FuzzDescription(f *testing.F) {
	at := &url.URL{Scheme: "http", Host: "192.168.1.1:5000", Path: "/rootDesc.xml"}
	for _, service := range []string{"WANIPConnection:1", "WANIPConnection:2", "WANPPPConnection:1", "Layer3Forwarding:1"} {
		for _, control := range []string{"/ctl", "ctl", "http://192.0.2.1/ctl", "//192.0.2.1/ctl", "http://192.168.1.1:80/ctl?a=b"} {
			f.Add([]byte((&igd{service: service, controlURL: control}).describe()))
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		all, err := services(strings.NewReader(string(b)), at, gateway)
		if err != nil {
			return
		}
		if len(all) > maxServices {
			t.Errorf("got %d services", len(all))
		}
		for _, c := range all {
			if u := c.SOAPClient.EndpointURL; u.Scheme != "http" || u.Hostname() != gateway.String() {
				t.Errorf("%q leads to %s", b, &u)
			}
			connection(c)
		}
	})
}

// SPDX-License-Identifier: Apache-2.0

package portmap

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func wantedAt(gateway netip.Addr) Mapping {
	return Mapping{Protocol: PCP, Gateway: gateway, Internal: netip.AddrPortFrom(loopback, 51820), External: netip.MustParseAddrPort("0.0.0.0:51820")}
}

func TestPCP(t *testing.T) {
	external := netip.MustParseAddrPort("203.0.113.9:40001")
	granted := func(b []byte) []byte { return pcpReply(b, 0, 120, 77, external) }
	changed := func(at int) func([]byte) [][]byte {
		return func(b []byte) [][]byte {
			a := granted(b)
			a[at]++
			return [][]byte{a}
		}
	}
	for _, tt := range []struct {
		name   string
		answer func([]byte) [][]byte
		want   error // nil for a mapping
	}{
		{"granted", func(b []byte) [][]byte { return [][]byte{granted(b)} }, nil},
		{"with an option", func(b []byte) [][]byte { return [][]byte{append(granted(b), 3, 0, 0, 0)} }, nil},
		{"after garbage", func(b []byte) [][]byte { return [][]byte{{}, []byte("HTTP/1.1"), b, granted(b)} }, nil},
		{"after another nonce", func(b []byte) [][]byte {
			forged := pcpReply(b, 0, 120, 77, netip.MustParseAddrPort("198.51.100.66:51820"))
			forged[pcpHeader]++
			return [][]byte{forged, granted(b)}
		}, nil},
		{"a refusal with another nonce", func(b []byte) [][]byte {
			forged := pcpReply(b, 2, 120, 77, external)
			forged[pcpHeader]++
			return [][]byte{forged, granted(b)}
		}, nil},
		{"refused", func(b []byte) [][]byte { return [][]byte{pcpReply(b, 8, 30, 77, external)} }, refusal(8)},
		{"NAT-PMP only", func(b []byte) [][]byte { return [][]byte{{0, 0x81, 0, 1, 0, 0, 0, 9}} }, refusal(1)},
		{"PCP of a version to come", func(b []byte) [][]byte {
			a := pcpReply(b, 1, 0, 77, external)
			a[0] = 3
			return [][]byte{a}
		}, refusal(1)},
		{"another nonce", changed(pcpHeader + 11), errNoAnswer},
		{"TCP", changed(pcpHeader + 12), errNoAnswer},
		{"another port", changed(pcpHeader + 17), errNoAnswer},
		{"another opcode", changed(1), errNoAnswer},
		{"cut", func(b []byte) [][]byte { return [][]byte{granted(b)[:40]} }, errNoAnswer},
		{"too long", func(b []byte) [][]byte { return [][]byte{append(granted(b), make([]byte, pcpMaxLength)...)} }, errNoAnswer},
		{"silent", func([]byte) [][]byte { return nil }, errNoAnswer},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			at := newAddr()
			serveUDP(t, at, pcpPort, tt.answer)
			r := (&pcp{gateway: at, source: loopback, random: random()}).Map(t.Context(), wantedAt(at))
			if !errors.Is(r.err, tt.want) || tt.want == nil && r.err != nil {
				t.Fatalf("got %v, want %v", r.err, tt.want)
			}
			if tt.want != nil {
				return
			}
			if r.mapping.External != external || r.lifetime != 2*time.Minute || r.mapping.Nonce == [12]byte{} {
				t.Errorf("got %+v, want %v for two minutes, with a nonce", r, external)
			}
			if diff := cmp.Diff(reading{hasEpoch: true, epoch: 77}, r.reading, cmp.AllowUnexported(reading{}), addrs); diff != "" {
				t.Errorf("reading (-want +got):\n%s", diff)
			}
		})
	}
}

// TestPCPRepeats has a router that loses the first two requests.
func TestPCPRepeats(t *testing.T) {
	t.Parallel()
	at, requests := newAddr(), 0
	var first []byte
	serveUDP(t, at, pcpPort, func(b []byte) [][]byte {
		if requests++; requests == 1 {
			first = b
		}
		if requests < 3 {
			return nil
		}
		if !bytes.Equal(b, first) {
			t.Errorf("got another request, %x after %x", b, first)
		}
		return [][]byte{pcpReply(b, 0, 120, 0, netip.MustParseAddrPort("203.0.113.9:51820"))}
	})
	r := (&pcp{gateway: at, source: loopback, random: random()}).Map(t.Context(), wantedAt(at))
	if r.err != nil || !r.reading.hasEpoch {
		t.Errorf("got %+v, want a mapping and an epoch, which may be 0", r)
	}
}

// TestPCPRequest has the bytes of RFC 6887, figures 2 and 9.
func TestPCPRequest(t *testing.T) {
	at, requests := newAddr(), make(chan []byte, 1)
	serveUDP(t, at, pcpPort, func(b []byte) [][]byte {
		select {
		case requests <- b:
		default: // a repetition
		}
		return [][]byte{pcpReply(b, 0, 7200, 1, netip.MustParseAddrPort("203.0.113.9:51820"))}
	})
	n := wantedAt(at)
	n.Nonce = [12]byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}
	p := &pcp{gateway: at, source: loopback}
	v4 := []byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff}
	head := func(opcode byte, life ...byte) []byte {
		return bytes.Join([][]byte{{2, opcode, 0, 0}, life, v4, {127, 0, 0, 1}}, nil)
	}
	body := func(port ...byte) []byte {
		return bytes.Join([][]byte{n.Nonce[:], {17, 0, 0, 0, 0xca, 0x6c}, port, v4, {0, 0, 0, 0}}, nil)
	}
	for _, tt := range []struct {
		name string
		ask  func() error
		want []byte
	}{
		{"map", func() error { return p.Map(t.Context(), n).err }, append(head(1, 0, 0, 0x1c, 0x20), body(0xca, 0x6c)...)},
		{"remove", func() error { return p.Remove(t.Context(), n) }, append(head(1, 0, 0, 0, 0), body(0, 0)...)},
		{"check", func() error { return p.Check(t.Context(), n).err }, head(0, 0, 0, 0, 0)},
	} {
		if err := tt.ask(); err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		if diff := cmp.Diff(tt.want, <-requests); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}

// TestNobodyListens ends at once: the router says that the port is closed. So does an end.
func TestNobodyListens(t *testing.T) {
	at := newAddr()
	for _, p := range []Protocol{PCP, NATPMP} {
		if r := protocols(at, loopback, random())[p].Map(t.Context(), wantedAt(at)); !errors.Is(r.err, errNoAnswer) {
			t.Errorf("%s: got %v, want %v", p, r.err, errNoAnswer)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for p, e := range protocols(at, loopback, random()) {
		if r := e.Map(ctx, wantedAt(at)); !errors.Is(r.err, errNoAnswer) {
			t.Errorf("%s: got %v, want %v", p, r.err, errNoAnswer)
		}
	}
}

// FuzzPCP has answers of any kind. What is taken for one has the request's nonce and port.
func FuzzPCP(f *testing.F) {
	q := pcpRequest{opcode: pcpMap, lifetime: lifetime, client: loopback, nonce: [12]byte{1, 2, 3}, internal: 51820, external: netip.MustParseAddrPort("0.0.0.0:51820")}
	announce := pcpRequest{opcode: pcpAnnounce, client: loopback}
	f.Add(pcpReply(q.encode(), 0, 7200, 5, netip.MustParseAddrPort("203.0.113.9:51820")))
	f.Add(pcpReply(q.encode(), 8, 30, 5, netip.MustParseAddrPort("203.0.113.9:51820")))
	f.Add(pcpReply(announce.encode(), 0, 0, 5, netip.AddrPort{}))
	f.Add([]byte{0, 0x80, 0, 1, 0, 0, 0, 1})
	f.Add(q.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := announce.parse(b); err == nil && (len(b) < pcpHeader || b[0] != 2 || b[1] != 0x80) {
			t.Errorf("took %x for an answer to ANNOUNCE", b)
		}
		a, err := q.parse(b)
		if err != nil {
			if a.external.IsValid() {
				t.Errorf("got %v beside %v", a.external, err)
			}
			return
		}
		if len(b) < pcpMapLength || b[3] != 0 || !bytes.Equal(b[24:36], q.nonce[:]) {
			t.Errorf("took %x for a mapping", b)
		}
		r := result{mapping: Mapping{External: a.external}, lifetime: a.lifetime}
		if r.check() == nil && (a.external.Port() == 0 || !a.external.Addr().Is4() || a.lifetime <= 0) {
			t.Errorf("%v for %v can be used", a.external, a.lifetime)
		}
	})
}

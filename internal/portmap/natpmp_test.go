// SPDX-License-Identifier: Apache-2.0

package portmap

import (
	"errors"
	"net/netip"
	"testing"
)

func TestNATPMP(t *testing.T) {
	address := netip.MustParseAddr("203.0.113.9")
	for _, tt := range []struct {
		name   string
		answer func([]byte) [][]byte
		want   string // external address; "" for none
		silent bool   // as if nobody had answered
	}{
		{"granted", func(b []byte) [][]byte { return [][]byte{natpmpReply(b, 0, 7, address, 51820)} }, "203.0.113.9:51820", false},
		{"another external port", func(b []byte) [][]byte { return [][]byte{natpmpReply(b, 0, 7, address, 40001)} }, "203.0.113.9:40001", false},
		{"double NAT", func(b []byte) [][]byte {
			return [][]byte{natpmpReply(b, 0, 7, netip.MustParseAddr("100.64.1.2"), 51820)}
		}, "100.64.1.2:51820", false},
		{"turned off", func(b []byte) [][]byte { return [][]byte{natpmpReply(b, 2, 7, address, 51820)} }, "", false},
		{"no address", func(b []byte) [][]byte { return [][]byte{natpmpReply(b, 0, 7, netip.IPv4Unspecified(), 51820)} }, "", false},
		{"external port 0", func(b []byte) [][]byte { return [][]byte{natpmpReply(b, 0, 7, address, 0)} }, "", false},
		{"another internal port", func(b []byte) [][]byte {
			a := natpmpReply(b, 0, 7, address, 51820)
			if len(a) == 16 {
				a[9]++
			}
			return [][]byte{a}
		}, "", true},
		{"no lifetime", func(b []byte) [][]byte {
			a := natpmpReply(b, 0, 7, address, 51820)
			if len(a) == 16 {
				clear(a[12:])
			}
			return [][]byte{a}
		}, "", false},
		{"garbage", func([]byte) [][]byte { return [][]byte{[]byte("GET / HTTP/1.1\r\n")} }, "", true},
		{"silent", func([]byte) [][]byte { return nil }, "", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			at := newAddr()
			serveUDP(t, at, pcpPort, tt.answer)
			a := action{kind: toMap, mapping: wantedAt(at)}
			r := a.perform(t.Context(), protocols(at, loopback, random())[NATPMP])
			if tt.want == "" {
				if r.err == nil || errors.Is(r.err, errNoAnswer) != tt.silent {
					t.Errorf("got %v, want an error; no answer: %v", r.err, tt.silent)
				}
				return
			}
			if r.err != nil || r.mapping.External.String() != tt.want || r.lifetime != lifetime || !r.reading.hasEpoch || r.reading.epoch != 7 {
				t.Errorf("got %+v, want %s", r, tt.want)
			}
			if err := protocols(at, loopback, random())[NATPMP].Remove(t.Context(), r.mapping); err != nil {
				t.Errorf("remove: %v", err)
			}
		})
	}
}

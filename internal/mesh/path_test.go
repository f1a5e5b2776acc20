// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"net/netip"
	"testing"
)

func TestIsSpecial(t *testing.T) {
	for s, want := range map[string]bool{
		"192.0.0.2": true, "192.0.0.8": false, "198.18.0.1": true, "198.19.255.255": true, "198.51.100.1": false,
		"240.0.0.1": true, "200::1": true, "3ff::1": true, "2001:db8::1": false, "10.0.0.1": false, "100.64.0.1": false,
		"fd12::1": false, "203.0.113.1": false, "::ffff:198.18.0.1": true,
	} {
		if got := IsSpecial(netip.MustParseAddr(s)); got != want {
			t.Errorf("%s: got %v, want %v", s, got, want)
		}
	}
}

// Where an address that is special may come from: a person or the node's own network, but
// not what others have seen.
func TestPathCandidateCheck(t *testing.T) {
	tests := []struct {
		addr string
		kind CandidateKind
		ok   bool
	}{
		{"203.0.113.1:51820", CandidatePublic, true},
		{"10.0.0.1:51820", CandidateSeen, true},
		{"198.18.0.1:51820", CandidateSeen, false},
		{"198.18.0.1:51820", CandidateLAN, true},
		{"198.18.0.1:51820", CandidateConfigured, true},
		{"203.0.113.1:51820", "a\nb", false},
		{"203.0.113.1:0", CandidatePublic, false},
		{"169.254.169.254:80", CandidateConfigured, false},
		{"[::ffff:203.0.113.1]:51820", CandidatePublic, false},
	}
	for _, tt := range tests {
		c := PathCandidate{Addr: netip.MustParseAddrPort(tt.addr), Kind: tt.kind}
		if err := c.Check(); (err == nil) != tt.ok {
			t.Errorf("%s, %q: got %v, want ok %v", tt.addr, tt.kind, err, tt.ok)
		}
	}
}

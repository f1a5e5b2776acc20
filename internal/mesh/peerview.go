// SPDX-License-Identifier: Apache-2.0

package mesh

import "net/netip"

// PeerView is how a node sees another one, as it says itself. It is for people: nothing is decided by it.
// Nodes send it to each other in CBOR, and commands print it in JSON.
type PeerView struct {
	Version  string         `cbor:"1,keyasint,omitempty" json:"version"`
	Alive    bool           `cbor:"2,keyasint,omitempty" json:"alive"`     // according to gossip
	Route    string         `cbor:"3,keyasint,omitempty" json:"route"`     // as meshd status prints it: "tunnel", "lan via gw"
	Path     string         `cbor:"4,keyasint,omitempty" json:"path"`      // kind of the tunnel's path; "" without a tunnel
	Addr     netip.AddrPort `cbor:"5,keyasint,omitempty" json:"address"`   // to which the path leads; "" for none
	Relay    string         `cbor:"6,keyasint,omitempty" json:"relay"`     // name of the node that forwards; "" for none
	Proved   bool           `cbor:"7,keyasint,omitempty" json:"proved"`    // probes are answered on the path
	Loss     float64        `cbor:"8,keyasint,omitempty" json:"lossRatio"` // of its last 32 probes, 0 to 1
	Answered bool           `cbor:"9,keyasint,omitempty" json:"answered"`  // an echo request through the mesh was answered just now
	RTT      float64        `cbor:"10,keyasint,omitempty" json:"rttMilliseconds"`
	Problems []Problem      `cbor:"11,keyasint,omitempty" json:"problems"` // about the other node; at most MaxPeerViewProblems
}

// MaxPeerViewProblems leaves room in one packet for the longest problems.
const MaxPeerViewProblems = 2

// Printable returns the view with texts that do a terminal no harm, and no more problems than allowed.
func (v PeerView) Printable() PeerView {
	v.Version, v.Path, v.Relay = Printable(v.Version, MaxHost), Printable(v.Path, MaxHost), Printable(v.Relay, MaxHost)
	v.Route = Printable(v.Route, MaxText)
	v.Addr = netip.AddrPortFrom(v.Addr.Addr().WithZone(""), v.Addr.Port())
	problems := make([]Problem, 0, MaxPeerViewProblems)
	for _, p := range v.Problems[:min(len(v.Problems), MaxPeerViewProblems)] {
		p.Kind = ProblemKind(Printable(string(p.Kind), MaxHost))
		problems = append(problems, p.Printable())
	}
	v.Problems = problems
	return v
}

// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/meshd/meshd/internal/mesh"
)

// pathBody is a path record as the content of an object.
type pathBody struct {
	mesh.PathRecord
	identity ed25519.PublicKey
	by       uint64 // sequence of the author's record at that time: it is forgotten with that record
}

type wirePath struct {
	Identity   []byte          `cbor:"1,keyasint"`
	Sequence   uint64          `cbor:"2,keyasint"`
	By         uint64          `cbor:"3,keyasint"`
	Key        []byte          `cbor:"4,keyasint"`
	Candidates []wireCandidate `cbor:"5,keyasint,omitempty"`
	Relays     [][]byte        `cbor:"6,keyasint,omitempty"`
	Relay      string          `cbor:"7,keyasint,omitempty"`
}

type wireCandidate struct {
	_    struct{} `cbor:",toarray"`
	Addr netip.AddrPort
	Kind string
	Open bool
}

func (b pathBody) author() ed25519.PublicKey { return b.identity }
func (b pathBody) subject() mesh.ID          { return b.Author }
func (b pathBody) sequence() uint64          { return b.Sequence }

func (b pathBody) covered(forgotten map[mesh.ID]uint64) bool { return b.by <= forgotten[b.Author] }

func (b pathBody) isEmpty() bool { return false }

func (b pathBody) same(held body) bool {
	h, ok := held.(pathBody)
	return ok && samePath(h.PathRecord, b.PathRecord)
}

func (b pathBody) encode(author ed25519.PublicKey, sequence, by uint64) ([]byte, error) {
	b.identity, b.Sequence, b.by = author, sequence, by
	return encodePath(b)
}

// pathKey returns the key of a node's path record.
func pathKey(id mesh.ID) objectKey { return objectKey{kindPath, id, id} }

func encodePath(b pathBody) ([]byte, error) {
	w := wirePath{Identity: b.identity, Sequence: b.Sequence, By: b.by, Key: b.Key[:], Relay: string(b.Relay)}
	for _, c := range b.Candidates {
		w.Candidates = append(w.Candidates, wireCandidate{Addr: c.Addr, Kind: string(c.Kind), Open: c.Open})
	}
	for _, id := range b.Relays {
		w.Relays = append(w.Relays, id[:])
	}
	payload, err := encoding.Marshal(w)
	if err != nil {
		return nil, fmt.Errorf("encode path: %w", err)
	}
	return payload, nil
}

func decodePath(payload []byte) (body, error) {
	var w wirePath
	if err := decoding.Unmarshal(payload, &w); err != nil {
		return nil, fmt.Errorf("decode path: %w", err)
	}
	b := pathBody{identity: w.Identity, by: w.By}
	switch {
	case len(w.Identity) != ed25519.PublicKeySize:
		return nil, fmt.Errorf("decode path: an identity of %d bytes", len(w.Identity))
	case w.Sequence == 0 || w.Sequence > maxSequence || w.By == 0 || w.By > maxSequence:
		return nil, fmt.Errorf("decode path: sequence %d, by record %d", w.Sequence, w.By)
	case len(w.Key) != len(b.Key):
		return nil, fmt.Errorf("decode path: a path key of %d bytes", len(w.Key))
	}
	b.Author, b.Sequence, b.Key = mesh.IDOf(b.identity), w.Sequence, [32]byte(w.Key)
	for _, c := range w.Candidates {
		b.Candidates = append(b.Candidates, mesh.PathCandidate{Addr: c.Addr, Kind: mesh.CandidateKind(c.Kind), Open: c.Open})
	}
	for _, id := range w.Relays {
		if len(id) != len(mesh.ID{}) {
			return nil, fmt.Errorf("decode path: a fingerprint of %d bytes", len(id))
		}
		b.Relays = append(b.Relays, mesh.ID(id))
	}
	b.Relay = mesh.RelayPreference(w.Relay)
	if err := checkPath(b.PathRecord); err != nil {
		return nil, fmt.Errorf("decode path: %w", err)
	}
	return b, nil
}

// maxRelayPreference is longer than any preference. One that this version does not know is
// allowed: the node is taken for no relay.
const maxRelayPreference = 16

// checkPath checks what a path record says, our own or another node's.
func checkPath(p mesh.PathRecord) error {
	switch {
	case p.Key == [32]byte{}:
		return errors.New("no path key")
	case len(p.Candidates) > mesh.MaxPathCandidates || len(p.Relays) > mesh.MaxPathRelays:
		return fmt.Errorf("%d candidates, %d relays; at most %d, %d",
			len(p.Candidates), len(p.Relays), mesh.MaxPathCandidates, mesh.MaxPathRelays)
	case slices.Contains(p.Relays, p.Author):
		return errors.New("a node is not its own relay")
	case !mesh.ValidText(string(p.Relay), maxRelayPreference):
		return fmt.Errorf("relay %q", p.Relay)
	}
	for _, c := range p.Candidates {
		if err := c.Check(); err != nil {
			return fmt.Errorf("candidate: %w", err)
		}
	}
	return nil
}

// PublishPath signs a path record of this node and distributes it, without its Author and
// Sequence, which are filled in. See say.
func (g *Gossip) PublishPath(p mesh.PathRecord) error {
	p = clonePath(p)
	p.Author, p.Sequence = g.self, 0
	if err := checkPath(p); err != nil {
		return fmt.Errorf("publish path: %w", err)
	}
	g.mu.Lock()
	inside := slices.IndexFunc(p.Candidates, func(c mesh.PathCandidate) bool { return !g.cluster.Outside(c.Addr.Addr()) })
	g.mu.Unlock()
	if inside >= 0 {
		return fmt.Errorf("publish path: candidate %v is inside the mesh", p.Candidates[inside].Addr)
	}
	g.say(kindPath, pathBody{PathRecord: p})
	return nil
}

// samePath reports whether two path records of one author say the same.
func samePath(a, b mesh.PathRecord) bool {
	return a.Key == b.Key && slices.Equal(a.Candidates, b.Candidates) && slices.Equal(a.Relays, b.Relays) && a.Relay == b.Relay
}

// paths returns all path records, by author.
func (s *store) paths() []mesh.PathRecord {
	var all []mesh.PathRecord
	for _, o := range s.nonRecords {
		if b, ok := o.body.(pathBody); ok {
			all = append(all, clonePath(b.PathRecord))
		}
	}
	slices.SortFunc(all, func(a, b mesh.PathRecord) int { return a.Author.Compare(b.Author) })
	return all
}

func clonePath(p mesh.PathRecord) mesh.PathRecord {
	p.Candidates, p.Relays = slices.Clone(p.Candidates), slices.Clone(p.Relays)
	return p
}

// PathsChanged fires when View.Paths has changed because of a path record. Changed does not
// fire then, because nothing that is derived from the records changes.
func (g *Gossip) PathsChanged() <-chan struct{} { return g.pathsChanged }

func (g *Gossip) signalPaths() { notify(g.pathsChanged) }

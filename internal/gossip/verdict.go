// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"cmp"
	"crypto/ed25519"
	"errors"
	"fmt"
	"slices"

	"github.com/meshd/meshd/internal/mesh"
)

// verdict is a mesh.Verdict as the content of an object.
type verdict struct {
	mesh.Verdict
	// about and by are the sequences of the subject's and the author's record at that
	// time, 0 for none. A verdict is forgotten with either record.
	about, by uint64
}

type wireVerdict struct {
	Identity []byte `cbor:"1,keyasint"`
	Epoch    uint64 `cbor:"2,keyasint"`
	Subject  []byte `cbor:"3,keyasint"`
	State    string `cbor:"4,keyasint"`
	Record   uint64 `cbor:"5,keyasint,omitempty"`
	About    uint64 `cbor:"6,keyasint,omitempty"`
	By       uint64 `cbor:"7,keyasint,omitempty"`
}

func (v verdict) author() ed25519.PublicKey { return v.Author }
func (v verdict) subject() mesh.ID          { return v.Subject }
func (v verdict) sequence() uint64          { return v.Epoch }

func (v verdict) covered(forgotten map[mesh.ID]uint64) bool {
	about, by := forgotten[v.Subject], forgotten[mesh.IDOf(v.Author)]
	return about > 0 && v.about <= about || by > 0 && v.by <= by
}

func encodeVerdict(v verdict) ([]byte, error) {
	if err := checkVerdict(v); err != nil {
		return nil, err
	}
	payload, err := encoding.Marshal(wireVerdict{
		Identity: v.Author, Epoch: v.Epoch, Subject: v.Subject[:], State: string(v.State),
		Record: v.Record, About: v.about, By: v.by,
	})
	if err != nil {
		return nil, fmt.Errorf("encode verdict: %w", err)
	}
	return payload, nil
}

func decodeVerdict(payload []byte) (body, error) {
	var w wireVerdict
	if err := decoding.Unmarshal(payload, &w); err != nil {
		return nil, fmt.Errorf("decode verdict: %w", err)
	}
	if len(w.Subject) != len(mesh.ID{}) {
		return nil, fmt.Errorf("decode verdict: a fingerprint of %d bytes", len(w.Subject))
	}
	v := verdict{mesh.Verdict{
		Author: w.Identity, Subject: mesh.ID(w.Subject),
		State: mesh.Health(w.State), Epoch: w.Epoch, Record: w.Record,
	}, w.About, w.By}
	if err := checkVerdict(v); err != nil {
		return nil, err
	}
	return v, nil
}

// checkVerdict checks a verdict, our own or another node's.
func checkVerdict(v verdict) error {
	switch {
	case len(v.Author) != ed25519.PublicKeySize:
		return fmt.Errorf("check verdict: an identity of %d bytes", len(v.Author))
	case v.State != mesh.HealthUp && v.State != mesh.HealthDraining && v.State != mesh.HealthDown:
		return fmt.Errorf("check verdict: state %q", v.State)
	case v.Epoch == 0:
		return errors.New("check verdict: epoch 0")
	case v.Epoch > maxSequence || v.Record > maxSequence || v.about > maxSequence || v.by > maxSequence:
		return fmt.Errorf("check verdict: epoch %d, record %d: the highest is %d", v.Epoch, v.Record, maxSequence)
	case v.Subject == mesh.IDOf(v.Author) && v.Epoch > maxSequence-mesh.EpochStep:
		return fmt.Errorf("check verdict: epoch %d of the subject's own verdict: no other node could exceed it", v.Epoch)
	case v.State != mesh.HealthDown && v.Subject != mesh.IDOf(v.Author):
		return fmt.Errorf("check verdict: only the node itself may say that it is %s", v.State)
	}
	return nil
}

// EpochError is returned by PublishVerdict for an epoch that is not above that of our last verdict
// on the subject. It wraps ErrStale.
type EpochError struct {
	Exceed uint64 // what the epoch must exceed
}

func (e *EpochError) Error() string { return fmt.Sprintf("the epoch must exceed %d", e.Exceed) }

func (e *EpochError) Unwrap() error { return ErrStale }

// PublishVerdict signs a verdict of this node and sends it to all nodes at once. Its author may be
// left out. Its epoch must be above that of our last verdict on the subject,
// else the error is an *EpochError.
func (g *Gossip) PublishVerdict(v mesh.Verdict) error {
	own := g.identity.Public().(ed25519.PublicKey)
	if len(v.Author) == 0 {
		v.Author = own
	}
	if !own.Equal(v.Author) {
		return fmt.Errorf("publish verdict on %v: the author is %v", v.Subject, mesh.IDOf(v.Author))
	}
	o, err := g.storeVerdict(v)
	if err != nil {
		return fmt.Errorf("publish verdict on %v: %w", v.Subject, err)
	}
	g.signal()
	g.spread([]object{o})
	return nil
}

func (g *Gossip) storeVerdict(v mesh.Verdict) (object, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	highest := g.store.highest
	key := objectKey{kindVerdict, g.self, v.Subject}
	if v.Epoch <= highest[key] {
		return object{}, &EpochError{Exceed: highest[key]}
	}
	payload, err := encodeVerdict(verdict{
		v, max(highest[recordKey(v.Subject)], v.Record), highest[recordKey(g.self)],
	})
	if err != nil {
		return object{}, err
	}
	o, err := g.sign(key.kind, payload)
	if err != nil {
		return object{}, err
	}
	switch g.store.put(o) {
	case fresh:
		return o, nil
	case covered:
		return object{}, fmt.Errorf("the subject or this node is forgotten: %w", ErrStale)
	}
	return object{}, errors.New("the store is full")
}

// verdicts returns all verdicts, by subject and author.
func (s *store) verdicts() []mesh.Verdict {
	var all []mesh.Verdict
	for _, o := range s.nonRecords {
		if v, ok := o.body.(verdict); ok {
			v.Author = slices.Clone(v.Author)
			all = append(all, v.Verdict)
		}
	}
	slices.SortFunc(all, func(a, b mesh.Verdict) int {
		return cmp.Or(a.Subject.Compare(b.Subject), mesh.IDOf(a.Author).Compare(mesh.IDOf(b.Author)))
	})
	return all
}

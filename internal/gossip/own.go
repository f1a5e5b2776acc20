// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"crypto/ed25519"
	"errors"
	"log/slog"
	"time"

	"golang.org/x/time/rate"
)

// ownBody is the content of an object that this node has one of, and that goes with its
// record. The sequence is given when it is signed.
type ownBody interface {
	body
	same(held body) bool // whether it says the same
	isEmpty() bool       // whether it need not be said, if nothing was said before
	encode(author ed25519.PublicKey, sequence, by uint64) ([]byte, error)
}

// own is what this node says in one kind of objects.
type own struct {
	kind objectKind
	body ownBody // nil for nothing yet
	pace *rate.Limiter
}

// bootBits leaves each start of the daemon this many bits for the sequences of such objects,
// before they reach those of the next start. Boot follows the seconds of the clock, so with
// more bits the sequences would exceed maxSequence within some centuries.
const bootBits = 14

// A node signs ownBurst objects of one kind at once, then one in each ownPeriod: a NAT that
// gives it another address with each packet must not keep the whole mesh busy.
const (
	ownPeriod = time.Second
	ownBurst  = 5
)

// newOwn returns what a node says that has not said anything, by kind.
func newOwn() []*own {
	var all []*own
	for _, kind := range []objectKind{kindPath, kindMembership, kindReach} {
		all = append(all, &own{kind: kind, pace: rate.NewLimiter(rate.Every(ownPeriod), ownBurst)})
	}
	return all
}

// say distributes what this node says in one kind of objects from now on. It does nothing if
// the other nodes know the same already. As long as this node has no record, it waits for
// that. What changes more often than about once in ownPeriod is left out.
func (g *Gossip) say(kind objectKind, b ownBody) {
	g.mu.Lock()
	for _, o := range g.own {
		if o.kind == kind {
			o.body = b
		}
	}
	g.mu.Unlock()
	g.updateOwn()
}

// updateOwn distributes what this node says, where the store has something else. It is called
// again and again, because others may return what an earlier start has signed. Sequences rise
// with Boot; should Boot fall, because the state directory comes from a backup and the clock
// is wrong, this jumps past them.
func (g *Gossip) updateOwn() {
	for _, own := range g.own {
		g.mu.Lock()
		o, err := g.signOwn(own)
		g.mu.Unlock()
		if err != nil {
			g.log.at(slog.LevelError, "publish what this node says", "kind", own.kind, "err", err)
			continue
		}
		if o.raw == nil {
			continue
		}
		if own.kind == kindPath {
			g.signalPaths()
		} else {
			g.signal()
		}
		g.spread([]object{o})
	}
}

// signOwn stores an object of ours anew if that is necessary, else it returns an empty object.
func (g *Gossip) signOwn(own *own) (object, error) {
	key := objectKey{own.kind, g.self, g.self}
	record, ok := g.store.objects[recordKey(g.self)]
	if own.body == nil || !ok {
		return object{}, nil
	}
	held, holds := g.store.objects[key]
	if holds && own.body.same(held.body) || !holds && own.body.isEmpty() {
		return object{}, nil
	}
	if !own.pace.AllowN(g.now(), 1) {
		return object{}, nil
	}
	sequence := max(g.store.highest[key]+1, g.transport.self.boot<<bootBits)
	payload, err := own.body.encode(g.identity.Public().(ed25519.PublicKey), sequence, record.body.sequence())
	if err != nil {
		return object{}, err
	}
	o, err := g.sign(own.kind, payload)
	if err != nil {
		return object{}, err
	}
	if g.store.put(o) != fresh {
		return object{}, errors.New("the store is full")
	}
	return o, nil
}

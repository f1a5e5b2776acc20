// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/meshd/meshd/internal/mesh"
)

// In memberlist, whoever is called dead contradicts with a higher incarnation.
// That number has 32 bits, so somebody with the secret can accuse a node in a
// way that nothing is above, and the node would be dead until the others have
// forgotten the accusation, over and over again. Against that, a node's name in
// memberlist is its fingerprint and an epoch. One that is driven to an absurd
// incarnation comes back as a new member, of whom nothing has been said, and
// everybody counts members by their fingerprints.

// maxIncarnation is never reached by contradicting those who are mistaken.
const maxIncarnation = 1 << 20

// renameEvery bounds how often a node changes its epoch.
const renameEvery = time.Second

// nodeName is a node's name in memberlist. A node begins each run with epoch 0;
// the later ones are random, so that nobody can call them dead in advance.
func nodeName(id mesh.ID, epoch uint32) string {
	if epoch == 0 {
		return id.String()
	}
	return fmt.Sprintf("%s-%08x", id, epoch)
}

// nodeID returns whose name it is, in any epoch.
func nodeID(name string) (mesh.ID, error) {
	text, epoch, later := strings.Cut(name, "-")
	id, err := mesh.ParseID(text)
	if err != nil {
		return mesh.ID{}, err
	}
	if !later {
		return id, nil
	}
	if n, err := strconv.ParseUint(epoch, 16, 32); err != nil || name != nodeName(id, uint32(n)) {
		return mesh.ID{}, fmt.Errorf("parse member name %q: the epoch is not one", name)
	}
	return id, nil
}

// lent is the transport as memberlist has it: it outlives the memberlist of one
// epoch.
type lent struct {
	*transport
	name    string        // of the member that we are
	evicted chan struct{} // it can't be held any more
}

// Shutdown leaves the transport open.
func (lent) Shutdown() error { return nil }

// WriteToAddress sends one of memberlist's packets, and notices by the way if
// we are driven to say that we are alive under an absurd incarnation.
func (l lent) WriteToAddress(b []byte, a memberlist.Address) (time.Time, error) {
	if isEvicted(b, l.name) {
		select {
		case l.evicted <- struct{}{}:
		default:
		}
	}
	return l.transport.WriteToAddress(b, a)
}

// enter becomes a member under the name of an epoch.
func (g *Gossip) enter(epoch uint32) error {
	member := lent{g.transport, nodeName(g.self, epoch), make(chan struct{}, 1)}
	list, err := memberlist.Create(g.memberlistConfig(member, g.members.listen(member.name)))
	if err != nil {
		return fmt.Errorf("set up memberlist: %w", err)
	}
	g.mu.Lock()
	g.list, g.member = list, member
	g.mu.Unlock()
	return nil
}

// membership returns the memberlist of this epoch, and what it has of ours.
func (g *Gossip) membership() (*memberlist.Memberlist, lent) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.list, g.member
}

// epochLoop begins a new epoch whenever we are evicted.
func (g *Gossip) epochLoop(ctx context.Context) {
	for {
		list, member := g.membership()
		select {
		case <-member.evicted:
			g.counters.add("member-evicted")
			g.log.at(slog.LevelWarn, "somebody with the secret calls this node dead; it comes back under another member name", "name", member.name)
			if err := list.Shutdown(); err != nil {
				g.log.at(slog.LevelWarn, "stop memberlist", "err", err)
			}
			if err := g.reenter(ctx); err != nil {
				g.log.at(slog.LevelError, "come back under another member name", "err", err)
				return
			}
		case <-ctx.Done():
			return
		}
		if !sleep(ctx, renameEvery) {
			return
		}
	}
}

// reenter becomes a member again, and makes the others known to the new
// memberlist before anybody is missed.
func (g *Gossip) reenter(ctx context.Context) error {
	var b [4]byte
	if _, err := io.ReadFull(g.transport.random, b[:]); err != nil {
		return fmt.Errorf("draw an epoch: %w", err)
	}
	others := g.members.others()
	if err := g.enter(max(1, binary.BigEndian.Uint32(b[:]))); err != nil {
		return err
	}
	for _, id := range firstN(others, reenterJoins) {
		g.joinNode(ctx, id)
	}
	if g.members.settle() {
		g.signal()
	}
	return nil
}

// reenterJoins is how many others are told at once that we are back.
const reenterJoins = 3

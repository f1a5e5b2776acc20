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
	"github.com/meshd/meshd/internal/wait"
)

// In memberlist, a node that is called dead refutes this with a higher incarnation. An
// incarnation has 32 bits, so an attacker with the secret can call a node dead with the
// highest one, which nothing can refute. The node would be dead until the others have
// forgotten it, over and over again. Therefore a node's name in memberlist is its
// fingerprint and an epoch. A node that is forced to an absurd incarnation comes back as
// a new member, and all nodes count members by fingerprint.

// maxIncarnation is never reached by refuting honest mistakes.
const maxIncarnation = 1 << 20

// renameEvery limits how often a node changes its epoch.
const renameEvery = time.Second

// nodeName returns a node's name in memberlist. A node begins each run with epoch 0; the
// later ones are random, so that nobody can call them dead in advance.
func nodeName(id mesh.ID, epoch uint32) string {
	if epoch == 0 {
		return id.String()
	}
	return fmt.Sprintf("%s-%08x", id, epoch)
}

// nodeID returns the node to which a name belongs, in any epoch.
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

// memberTransport is the transport as one memberlist sees it. The transport outlives the
// memberlist of an epoch.
type memberTransport struct {
	*transport
	name    string        // our member name
	evicted chan struct{} // signals that the name can't be defended any more
}

// Shutdown leaves the transport open.
func (memberTransport) Shutdown() error { return nil }

// WriteToAddress sends one of memberlist's packets. It also detects that we are forced to
// announce ourselves with an absurd incarnation.
func (l memberTransport) WriteToAddress(b []byte, a memberlist.Address) (time.Time, error) {
	if isEvicted(b, l.name) {
		select {
		case l.evicted <- struct{}{}:
		default:
		}
	}
	return l.transport.WriteToAddress(b, a)
}

// startMemberlist becomes a member under the name of an epoch.
func (g *Gossip) startMemberlist(epoch uint32) error {
	member := memberTransport{g.transport, nodeName(g.self, epoch), make(chan struct{}, 1)}
	list, err := memberlist.Create(g.memberlistConfig(member, g.members.listen(member.name)))
	if err != nil {
		return fmt.Errorf("set up memberlist: %w", err)
	}
	g.mu.Lock()
	g.list, g.member = list, member
	g.mu.Unlock()
	return nil
}

// membership returns the memberlist of this epoch, and its transport.
func (g *Gossip) membership() (*memberlist.Memberlist, memberTransport) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.list, g.member
}

// epochLoop begins a new epoch whenever our member name can't be defended any more.
func (g *Gossip) epochLoop(ctx context.Context) {
	for {
		list, member := g.membership()
		select {
		case <-member.evicted:
			g.counters.add("member-evicted")
			g.log.at(slog.LevelWarn, "a host with the secret calls this node dead; rejoining under another member name", "member", member.name)
			if err := list.Shutdown(); err != nil {
				g.log.at(slog.LevelWarn, "stop memberlist", "err", err)
			}
			if err := g.restartMemberlist(ctx); err != nil {
				g.log.at(slog.LevelError, "come back under another member name", "err", err)
				return
			}
		case <-ctx.Done():
			return
		}
		if wait.Sleep(ctx, renameEvery) != nil {
			return
		}
	}
}

// restartMemberlist becomes a member again, and tells the new memberlist of the other
// nodes before they count as lost.
func (g *Gossip) restartMemberlist(ctx context.Context) error {
	var b [4]byte
	if _, err := io.ReadFull(g.transport.random, b[:]); err != nil {
		return fmt.Errorf("draw an epoch: %w", err)
	}
	others := g.members.others()
	if err := g.startMemberlist(max(1, binary.BigEndian.Uint32(b[:]))); err != nil {
		return err
	}
	for _, id := range firstN(others, restartJoins) {
		g.joinNode(ctx, id)
	}
	if g.members.dropStale() {
		g.signal()
	}
	return nil
}

// restartJoins is how many other nodes are told at once that we are back.
const restartJoins = 3

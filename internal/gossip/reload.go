// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/meshd/meshd/internal/mesh"
)

// TrustList is the value of mesh.Cluster.Trust under which only the word of the
// nodes in Options.Trusted counts, and our own.
const TrustList = "list"

// Reconfigure takes over what has changed in the configuration while we run.
// The first secret seals, all of them open. The cluster's name and ranges can't
// change: then the error says so, and everything stays as it was.
func (g *Gossip) Reconfigure(c mesh.Cluster, join []string, secrets [][32]byte, trusted []mesh.ID) error {
	switch {
	case c.Name != g.name:
		return fmt.Errorf("reconfigure gossip: cluster.name is %q, it can't become %q without a restart", g.name, c.Name)
	case c.Hash() != g.ranges:
		return errors.New("reconfigure gossip: cluster.overlay, cluster.pods and cluster.pod-prefix can't change without a restart")
	}
	if err := settingsOf(c).check(); err != nil {
		return fmt.Errorf("reconfigure gossip: %w", err)
	}
	ring, err := newKeyring(secrets)
	if err != nil {
		return fmt.Errorf("reconfigure gossip: %w", err)
	}
	if err := g.transport.reconfigure(c, ring); err != nil {
		return fmt.Errorf("reconfigure gossip: %w", err)
	}
	g.notices.clear() // what still holds is met again
	g.mu.Lock()
	g.cluster, g.joinList = c, slices.Clone(join)
	g.trust(c, trusted)
	g.mu.Unlock()
	g.agree()
	select {
	case g.rejoin <- struct{}{}:
	default:
	}
	g.signal()
	return nil
}

// trust sets whose word counts, and drops what the others have said.
func (g *Gossip) trust(c mesh.Cluster, trusted []mesh.ID) {
	g.trusted = nil
	if c.Trust != TrustList {
		return
	}
	g.trusted = map[mesh.ID]bool{g.self: true}
	for _, id := range trusted {
		g.trusted[id] = true
	}
	g.store.retain(g.trusts)
}

// trusts says whether a node's word counts.
func (g *Gossip) trusts(id mesh.ID) bool { return g.trusted == nil || g.trusted[id] }

// meetUntrusted counts what a node that is not on the list says, and names the node.
// It reads a record a second at most: a stranger is not to cost more than the look at
// the list.
func (g *Gossip) meetUntrusted(raw []byte) {
	g.counters.add("object-untrusted")
	if objectKind(raw[0]&0x0f) != kindRecord || !g.log.limit("untrusted record", time.Second, logBurst) {
		return
	}
	o, err := decodeObject(g.name, raw)
	if err != nil {
		return // nobody is to be accused of what another has made up
	}
	r, id := o.body.(recordBody), o.key.author.String()
	g.transport.meet(id, mesh.Problem{
		Kind: ProblemUntrusted, Node: r.Name,
		Text:   fmt.Sprintf("%s has the secret, but its fingerprint %s is not in cluster.trusted: what it says is left out", r.Name, id),
		Advice: fmt.Sprintf("add %s to cluster.trusted on all nodes if it belongs to the mesh, else change the secret", id),
	})
}

// retain drops the objects of all authors but some, as if they had never come.
func (s *store) retain(author func(mesh.ID) bool) {
	for key, o := range s.objects {
		if !author(key.author) {
			s.forget(o)
		}
	}
	s.rebury()
}

// reconfigure sets what the transport needs to know of a configuration.
func (t *transport) reconfigure(c mesh.Cluster, ring keyring) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	changed := t.self
	changed.cluster = c
	if _, err := changed.marshal(); err != nil {
		return err
	}
	t.self.cluster, t.ring = c, ring
	return nil
}

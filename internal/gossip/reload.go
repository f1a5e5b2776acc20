// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/meshd/meshd/internal/mesh"
)

// Reconfigure applies a changed configuration to the running node. The first secret
// encrypts, all of them decrypt. The cluster's name and ranges can't change: in that case
// it returns an error and changes nothing.
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
	g.notices.clear() // problems that still exist are reported again
	g.mu.Lock()
	g.cluster, g.joinList = c, slices.Clone(join)
	g.setTrust(c, trusted)
	g.mu.Unlock()
	g.updateSettings()
	select {
	case g.rejoin <- struct{}{}:
	default:
	}
	g.signal()
	return nil
}

// setTrust sets which nodes are trusted, and drops the objects of all others.
func (g *Gossip) setTrust(c mesh.Cluster, trusted []mesh.ID) {
	g.trusted = nil
	if c.Trust != mesh.TrustList {
		return
	}
	g.trusted = map[mesh.ID]bool{g.self: true}
	for _, id := range trusted {
		g.trusted[id] = true
	}
	g.store.retain(g.trusts)
}

// trusts reports whether a node is trusted.
func (g *Gossip) trusts(id mesh.ID) bool { return g.trusted == nil || g.trusted[id] }

// reportUntrusted counts an object of an untrusted node, and reports the node. It decodes
// at most one record per second, so that an untrusted node costs hardly more than looking
// it up in the list.
func (g *Gossip) reportUntrusted(raw []byte) {
	g.counters.add("object-untrusted")
	if objectKind(raw[0]&0x0f) != kindRecord || !g.log.limit("untrusted record", time.Second, logBurst) {
		return
	}
	o, err := decodeObject(g.name, raw)
	if err != nil {
		return // a forged record must not accuse the node that it names
	}
	r, id := o.body.(recordBody), o.key.author.String()
	g.transport.reportProblem(id, mesh.Problem{
		Kind: ProblemUntrusted, Node: r.Name,
		Text:   fmt.Sprintf("%s has the secret, but its fingerprint %s is not in cluster.trusted: what it says is ignored", r.Name, id),
		Advice: fmt.Sprintf("add %s to cluster.trusted on all nodes if it belongs to the mesh, else change the secret", id),
	})
}

// retain drops the objects of all authors but the given ones, as if they had never come.
func (s *store) retain(author func(mesh.ID) bool) {
	for key, o := range s.objects {
		if !author(key.author) {
			s.erase(o)
		}
	}
	s.reapplyTombstones()
}

// reconfigure sets what the transport needs from a configuration.
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

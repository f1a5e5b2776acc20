// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"errors"
	"fmt"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/gossip"
	"github.com/meshd/meshd/internal/mesh"
)

// Forget implements control.Daemon.
func (d *daemon) Forget(ctx context.Context, node string) (err error) {
	wait := d.inLoop(ctx, func() { err = d.forget(node) })
	return errors.Join(wait, err)
}

func (d *daemon) forget(node string) error {
	view := d.gossip.View()
	found, err := findNode(view.Records, node)
	if err != nil {
		return err
	}
	id := found.ID()
	switch {
	case id == d.self.ID():
		return fmt.Errorf("%w: %s is this node", control.ErrRefused, node)
	case view.Alive[id]:
		return fmt.Errorf("%w: node %s is alive; stop meshd there first, else it comes back at once", control.ErrRefused, node)
	}
	return d.gossip.Forget(id, found.Sequence)
}

// Revoke implements control.Daemon.
func (d *daemon) Revoke(ctx context.Context, node string) (r control.Revoked, err error) {
	wait := d.inLoop(ctx, func() { r, err = d.revoke(node) })
	return r, errors.Join(wait, err)
}

// revoke also takes the fingerprint of a node that is not known: a node that starts from a
// stolen backup has one.
func (d *daemon) revoke(node string) (control.Revoked, error) {
	found, err := findNode(d.gossip.View().Records, node)
	revoked := control.Revoked{ID: found.ID(), Name: found.Name}
	if err != nil {
		id, parseErr := mesh.ParseID(node)
		if parseErr != nil {
			return control.Revoked{}, err
		}
		revoked = control.Revoked{ID: id}
	}
	if revoked.ID == d.self.ID() {
		return control.Revoked{}, fmt.Errorf("%w: %s is this node; run it on another one", control.ErrRefused, node)
	}
	err = d.gossip.Forget(revoked.ID, mesh.Forever)
	if errors.Is(err, gossip.ErrOverruled) {
		return control.Revoked{}, fmt.Errorf("%w: %s has revoked this node, and of two that revoke each other the lower fingerprint counts; run it on a node whose fingerprint is below %s, "+
			"or write cluster.trust: list with all other nodes in cluster.trusted on each of them", control.ErrRefused, node, revoked.ID)
	}
	if err != nil {
		return control.Revoked{}, fmt.Errorf("revoke %s: %w", node, err)
	}
	d.log.Info("identity revoked", keyID, revoked.ID, "name", revoked.Name)
	return revoked, nil
}

// findNode returns the node with a name or fingerprint. Errors wrap control.ErrRefused.
func findNode(records []mesh.Record, node string) (mesh.Record, error) {
	var found []mesh.Record
	for _, r := range records {
		if r.Name == node || r.ID().String() == node {
			found = append(found, r)
		}
	}
	switch {
	case len(found) == 0:
		return mesh.Record{}, fmt.Errorf("%w: no node is named %s; meshd status lists them", control.ErrRefused, node)
	case len(found) > 1:
		return mesh.Record{}, fmt.Errorf("%w: %d nodes are named %s; give the fingerprint of one, from meshd status -o json", control.ErrRefused, len(found), node)
	}
	return found[0], nil
}

// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/node"
)

// Renumber implements control.Daemon.
func (d *daemon) Renumber(ctx context.Context, force bool) (r control.Renumbered, err error) {
	wait := d.inLoop(ctx, func() { r, err = d.renumber(ctx, force, time.Now()) })
	return r, errors.Join(wait, err)
}

// renumber gives up this node's claim for another slot. The next turn publishes the claim and
// changes the host.
func (d *daemon) renumber(ctx context.Context, force bool, now time.Time) (control.Renumbered, error) {
	view := d.gossip.View()
	s := d.memory.ClaimInput(d.input(view, now))
	if s.Current.Slot == mesh.None {
		return control.Renumbered{}, fmt.Errorf("%w: this node has no slot yet", control.ErrRefused)
	}
	if claim, problems := mesh.NextClaim(s); claim.Slot == s.Current.Slot && len(problems) == 0 && !force {
		return control.Renumbered{}, fmt.Errorf("%w: nothing is wrong with slot %d; give it up anyway with --force", control.ErrRefused, s.Current.Slot)
	}
	s.GiveUp, s.Listened = true, true
	claim, problems := mesh.NextClaim(s)
	if claim.Slot == mesh.None {
		return control.Renumbered{}, fmt.Errorf("%w: there is no other slot: %s: %s", control.ErrRefused, problems[0].Text, problems[0].Advice)
	}
	if err := d.leaveSlot(ctx); err != nil {
		return control.Renumbered{}, err
	}
	claim.Since = node.NextSequence(d.disk.node.Sequence, view.OwnSequence, now)
	former, next := d.disk.node.Claim.Slot, d.disk.node
	next.Claim, next.Ready = claim, false
	if err := d.disk.saveNode(next); err != nil {
		return control.Renumbered{}, err
	}
	d.memory.ClaimedAt = now
	d.log.Info("renumber", "slot", claim.Slot, "former", former)
	return control.Renumbered{Former: slot(s.Cluster, former), Now: slot(s.Cluster, claim.Slot)}, nil
}

// slot returns a slot with its addresses; one beyond the cluster's ranges has none.
func slot(c mesh.Cluster, number int) control.Slot {
	s := control.Slot{Slot: number}
	if number < c.Slots() {
		s.Overlay, s.PodCIDRs = c.Overlays(number), c.PodCIDRs(number)
	}
	return s
}

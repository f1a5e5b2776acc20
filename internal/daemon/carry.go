// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"errors"
	"fmt"
	"slices"

	"github.com/meshd/meshd/internal/gossip"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/node"
	"github.com/meshd/meshd/internal/probe"
)

// publishVerdicts tells what this node has to say of those who carry traffic for it, and of
// itself. If our record could not be told, a verdict that names it names the former one,
// or waits if by that one our term goes on.
func (d *daemon) publishVerdicts(a node.Announcement, view mesh.View) error {
	d.gossip.RequestSigns(a.RequestSigns)
	for _, v := range a.Verdicts {
		if own := d.memory.Own; v.Record > own.Sequence {
			if own.Term.Since != 0 {
				continue
			}
			v.Record = own.Sequence
		}
		if err := d.say(v); err != nil {
			return err
		}
		d.log.Info("verdict", "role", v.Role, "peer", node.NameOf(view.Records, v.Subject), "state", v.State, "epoch", v.Epoch)
	}
	return nil
}

// say publishes a verdict. We may have said more of a node than gossip still
// shows, before it was forgotten; then the epoch has to go beyond that.
func (d *daemon) say(v mesh.Verdict) error {
	err := d.gossip.PublishVerdict(v)
	if said := (*gossip.EpochError)(nil); errors.As(err, &said) {
		v.Epoch = said.Exceed + 1
		err = d.gossip.PublishVerdict(v)
	}
	return err
}

// watch probes those who carry traffic for this node.
func (d *daemon) watch(w probe.Watch) []mesh.Problem {
	d.prober.SetTargets(w.Targets(), probe.Pace(d.cfg.Probe))
	if err := d.prober.Err(); err != nil {
		return []mesh.Problem{{
			Kind: ProblemProbe, Node: d.memory.Own.Name, Text: fmt.Sprintf("gateways can't be watched: %v", err),
			Advice: "give meshd CAP_NET_RAW, as the packaged unit does",
		}}
	}
	return nil
}

// newVerdicts says whether gossip brought one since a turn. That turn is taken at
// once: until everybody has, packets go to a gateway that is not there.
func (d *daemon) newVerdicts(t turn) bool {
	return t.err == nil && !slices.EqualFunc(d.gossip.View().Verdicts, t.view.Verdicts, func(a, b mesh.Verdict) bool {
		return a.Epoch == b.Epoch && a.State == b.State && a.Subject == b.Subject && a.Role == b.Role && a.Author.Equal(b.Author)
	})
}

// ProblemProbe is that nobody watches those who carry traffic for this node.
const ProblemProbe mesh.ProblemKind = "no-probes"

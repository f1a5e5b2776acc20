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

// publishVerdicts publishes this node's verdicts on the nodes that carry its traffic, and on
// itself. If the new record was not published, a verdict that names it names the last one
// instead; if a term of this node goes on in that one, the verdict is not published yet.
func (d *daemon) publishVerdicts(a node.Announcement, view mesh.View) error {
	d.gossip.RequestSigns(a.RequestSigns)
	for _, v := range a.Verdicts {
		if own := d.memory.Own; v.Record > own.Sequence {
			if own.Term.Since != 0 || len(own.Serving) > 0 {
				continue
			}
			v.Record = own.Sequence
		}
		if err := d.publishVerdict(v); err != nil {
			return err
		}
		d.log.Info("verdict", "peer", node.NameOf(view.Records, v.Subject), "state", v.State, "epoch", v.Epoch)
	}
	return nil
}

// publishVerdict publishes a verdict. This node may have published a higher epoch that gossip
// no longer has, because the subject was forgotten since; then the verdict goes beyond that.
func (d *daemon) publishVerdict(v mesh.Verdict) error {
	err := d.gossip.PublishVerdict(v)
	if said := (*gossip.EpochError)(nil); errors.As(err, &said) {
		v.Epoch = said.Exceed + 1
		err = d.gossip.PublishVerdict(v)
	}
	return err
}

// setProbeTargets has the nodes probed that carry this node's traffic.
func (d *daemon) setProbeTargets(w probe.Watch) []mesh.Problem {
	d.prober.SetTargets(w.Targets(), probe.Pace(d.cfg.Probe))
	if err := d.prober.Err(); err != nil {
		return []mesh.Problem{{
			Kind: ProblemProbe, Node: d.memory.Own.Name, Text: fmt.Sprintf("gateways can't be probed: %v", err),
			Advice: "give meshd CAP_NET_RAW, as the packaged unit does",
		}}
	}
	return nil
}

// verdictsChanged reports whether gossip has other verdicts than a turn had. The next turn is
// taken at once then: until every node has taken it, packets go to a gateway that is down.
func (d *daemon) verdictsChanged(t turn) bool {
	return t.err == nil && !slices.EqualFunc(d.gossip.View().Verdicts, t.view.Verdicts, func(a, b mesh.Verdict) bool {
		return a.Epoch == b.Epoch && a.State == b.State && a.Subject == b.Subject && a.Author.Equal(b.Author)
	})
}

// ProblemProbe means that this node can't probe the nodes that carry its traffic.
const ProblemProbe mesh.ProblemKind = "no-probes"

// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"errors"
	"reflect"
	"time"

	"github.com/meshd/meshd/internal/config"
	"github.com/meshd/meshd/internal/k3s"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg"
	"github.com/meshd/meshd/internal/node"
	"github.com/meshd/meshd/internal/path/agent"
	"github.com/meshd/meshd/internal/probe"
)

// turn is what one turn of the loop saw and did. Requests read it afterwards.
type turn struct {
	now          time.Time
	cfg          config.Config
	in           node.Input         // as far as it was read
	k3s          k3s.Settings       // of this host
	view         mesh.View          // with what was announced
	wanted       node.Configuration // what the host should have
	observed     netcfg.State       // what the host has after the turn's changes
	paths        []agent.PeerStatus
	sessions     node.Sessions
	watch        probe.Watch
	results      map[probe.Target]probe.Result
	problems     []mesh.Problem
	pathProblems []mesh.Problem // those of them that paths have, which may change between turns
	recheckAfter time.Duration  // take the next turn after this at the latest; 0 for no limit
	err          error
	applied      bool // the host was brought to its desired state, but for what was refused
	refused      bool // the kernel refused some step, see problems
	duplicate    bool // another daemon runs with this identity, and this one has to stop
}

// turn reads everything anew and does what follows from it.
func (d *daemon) turn(ctx context.Context) turn {
	in := d.input(d.gossip.View(), time.Now())
	in.LastHeard = d.gossip.LastHeard()
	d.names.set(in.View.Records)
	t := turn{now: in.Now, cfg: d.cfg, view: in.View, k3s: d.services.K3sSettings()}
	in.Config.Etcd = etcdTimings(t.cfg, t.k3s)
	in.Config.Links = d.links.state(d.linkFiles)
	t.note(d.links.problems(d.cfg.Node.Name, in.Now), nil)
	t.note(secretNotes(d.cfg.Node.Name, in.View.Records), nil)
	t.paths, in.Paths = d.readPaths(in.View.Records)
	if d.memory.SawDuplicate(in) {
		t.duplicate = true
		return t
	}
	t.note(nil, d.servers.control.EnsureListening())
	t.note(nil, d.adopt(in.View.Cluster))
	facts, err := d.kernel.Facts(ctx)
	if err != nil {
		t.note(nil, err)
		return t
	}
	in.Facts = facts
	d.announce(ctx, &t, &in)
	t.note(d.serveMetrics(), nil)
	if wait := d.memory.DuplicateWait(in); wait > 0 {
		t.note([]mesh.Problem{node.DuplicateProblem(d.cfg.Node.Name)}, nil)
		t.recheckIn(wait)
		return t
	}
	t.note(nil, d.saveDuplicate(false))
	known := d.configure(ctx, &t, &in)
	if known {
		t.note(nil, d.followLinks(ctx))
	}
	d.conclude(ctx, &t, in, known)
	t.note(nil, d.saveObjects(t.now, false))
	t.sessions = d.memory.Sessions
	return t
}

// announce publishes this node's record and verdicts, and its first path record.
func (d *daemon) announce(ctx context.Context, t *turn, in *node.Input) {
	in.Results = d.prober.Results()
	if d.memory.WouldMove(*in) {
		users, err := d.users(ctx, in.View.Cluster)
		t.note(nil, err)
		in.InUse = users
	}
	a, former := d.memory.Announce(*in), d.disk.node.Claim.Slot
	if a.NewClaim && a.Promise.Claim.Slot != former {
		t.note(nil, d.leaveSlot(ctx))
	}
	t.note(a.Problems, d.publishRecord(a, t.now))
	t.note(nil, d.publishVerdicts(a, in.View))
	t.recheckIn(a.RecheckAfter)
	in.View, in.Promise = d.gossip.View(), d.promise()
	t.view = in.View
	if !reflect.DeepEqual(in.View.Cluster, d.settings) { // changed by another node meanwhile
		t.note(nil, d.adopt(in.View.Cluster))
	}
	in.Resolved = d.resolver.resolve(hostNames(in.View.Records, in.View.Clients), t.now)
	t.note(nil, d.publishFirstPath(*in))
}

// configure brings the host to its desired state, and reports whether it is known what the
// host has afterwards.
func (d *daemon) configure(ctx context.Context, t *turn, in *node.Input) (known bool) {
	t.wanted = d.memory.Configure(*in)
	t.note(t.wanted.Problems, nil)
	t.note(d.resolver.problems(in.View.Records), nil)
	t.note(d.reloadProblems, nil)
	observed, err := d.observe(ctx, t.wanted.Desired)
	if err != nil {
		t.note(nil, err)
		return false
	}
	t.observed = observed
	err = d.change(ctx, t, t.options())
	t.note(nil, err)
	t.applied = err == nil
	return true
}

// conclude does what follows from the state of the host. The order matters: without routes,
// packets to the mesh would leave by the default route; and once a pod has started, its
// address can't change.
func (d *daemon) conclude(ctx context.Context, t *turn, in node.Input, known bool) {
	observed := &t.observed
	if !known {
		observed = nil
	}
	in.Results = d.prober.Results()
	c := d.memory.Conclude(in, t.wanted, observed)
	t.note(c.Problems, nil)
	t.recheckIn(c.RecheckAfter)
	if err := d.startHandshakes(ctx, t, c.Handshakes); err != nil {
		t.note(nil, err)
		c.HasAddresses, c.Watch = false, probe.Watch{} // it is no longer known what the host has
	}
	t.watch, t.results, t.in = c.Watch, in.Results, in
	t.paths, t.in.Paths = d.readPaths(in.View.Records) // changes of the host take time
	var err error
	t.pathProblems, err = d.keepPaths(t)
	t.note(t.pathProblems, err)
	t.note(d.answerClients(*t), nil)
	d.gossip.SetAddresses(d.gossipAddresses(*t, c.HasAddresses), d.streamEndpoints(*t))
	t.note(d.setProbeTargets(c.Watch), nil)
	d.online = d.online && d.disk.node.Ready // after a new claim, pods wait again
	bridgeErr := d.removeStaleBridge(ctx)
	t.note(nil, bridgeErr)
	canCarryPods := t.applied && c.HasAddresses && c.ParametersSet && bridgeErr == nil
	podsMayStart := d.applyCNI(t, c.ClaimWait, canCarryPods)
	k3sMayStart := d.applyK3s(t, c.ClaimWait)
	if podsMayStart && k3sMayStart && canCarryPods {
		d.goOnline(t, c.ReadyWait)
	}
	t.note(nil, d.forgetAbsent(c.Forget))
}

// recheckIn limits the time to the next turn to d, if d is not 0.
func (t *turn) recheckIn(d time.Duration) {
	if d > 0 && (t.recheckAfter == 0 || d < t.recheckAfter) {
		t.recheckAfter = max(d, gather)
	}
}

// note adds what a step of the turn found. After an error the turn goes on with the steps that
// don't depend on it: a full disk stops no tunnel, and a broken CNI directory no route.
func (t *turn) note(problems []mesh.Problem, err error) {
	t.problems = append(t.problems, problems...)
	if err != nil {
		t.err = errors.Join(t.err, err)
	}
}

// failed reports whether the turn is to be taken again soon.
func (t *turn) failed() bool { return t.err != nil || t.refused }

// options returns how to compare observed and desired state.
func (t *turn) options() netcfg.Options {
	return netcfg.Options{Now: t.now, Prune: t.wanted.Prune}
}

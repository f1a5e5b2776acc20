// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"time"

	"github.com/meshd/meshd/internal/cni"
	"github.com/meshd/meshd/internal/config"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg"
	"github.com/meshd/meshd/internal/netcfg/host"
	"github.com/meshd/meshd/internal/node"
	"github.com/meshd/meshd/internal/probe"
	"github.com/meshd/meshd/internal/wait"
)

const (
	// resync is how often the loop looks again without being told to.
	resync = 10 * time.Second
	// gather is how long a first event waits for more of its kind, and spacing
	// the least time from turn to turn: a node that joins makes several events,
	// and pods that start on a busy host make them without end.
	gather  = 5 * time.Millisecond
	spacing = 50 * time.Millisecond
	// retryMin and retryMax bound how soon a turn that failed is taken again.
	retryMin = 250 * time.Millisecond
	retryMax = resync
)

// turn is what one turn of the loop saw and did. Commands read it afterwards.
type turn struct {
	now      time.Time
	cfg      config.Config
	view     mesh.View          // with what was announced
	wanted   node.Configuration // what the host should have
	observed netcfg.State       // what the host has after the turn's changes
	sessions node.Sessions
	watch    probe.Watch
	results  map[probe.Target]probe.Result
	problems []mesh.Problem
	again    time.Duration // how soon to look again at the latest; 0 for no wish
	err      error
	refused  bool  // the kernel refused some step, see problems
	fatal    error // the daemon can't go on
}

// loop takes turns until ctx ends.
func (d *daemon) loop(ctx context.Context) error {
	events, err := d.host.Watch(ctx)
	if err != nil {
		return fmt.Errorf("watch host: %w", err)
	}
	d.memory.Handshakes = node.NewHandshakes(d.gossip.View().Records)
	var retry time.Duration
	for {
		t := d.turn(ctx)
		if ctx.Err() != nil {
			break
		}
		if t.fatal != nil {
			d.services.Notify("STOPPING=1")
			return errors.Join(t.fatal, d.remember(t.now, true))
		}
		retry = d.report(t, retry)
		wake := time.NewTimer(nextWake(t, retry))
		urgent := false
		select {
		case <-ctx.Done():
		case <-wake.C:
		case <-events:
		case <-d.gossip.Changed():
			urgent = d.newVerdicts(t)
		case <-d.prober.Changed():
			urgent = true
		case <-d.names.changed:
		case <-d.opt.Reload:
			d.reload(ctx)
		case ask := <-d.asked:
			ask()
			urgent = true
		}
		wake.Stop()
		if !urgent && wait.Sleep(ctx, pause(t, retry)) != nil {
			break
		}
	}
	d.log.Info("stopping; the host stays as it is")
	d.services.Notify("STOPPING=1")
	return d.remember(time.Now(), true)
}

// nextWake says how long to sleep after a turn.
func nextWake(t turn, retry time.Duration) time.Duration {
	d := resync
	if t.err != nil || t.refused {
		d = retry
	}
	if t.again > 0 {
		d = min(d, t.again)
	}
	return d
}

// pause says how long to wait after an event. A turn that has failed may be the
// cause of the events that follow it, and must not chase itself.
func pause(t turn, retry time.Duration) time.Duration {
	least := spacing
	if t.err != nil || t.refused {
		least = min(retry, time.Second)
	}
	return max(gather, least-time.Since(t.now))
}

// wakeIn asks for another turn in d at the latest, if d is not 0.
func (t *turn) wakeIn(d time.Duration) {
	if d > 0 && (t.again == 0 || d < t.again) {
		t.again = max(d, gather)
	}
}

// note takes in what a step of the turn has found. The steps do not depend on each other's
// success where they need not: a full disk stops no tunnel, and a broken CNI directory no
// route.
func (t *turn) note(problems []mesh.Problem, err error) {
	t.problems = append(t.problems, problems...)
	if err != nil {
		t.err = errors.Join(t.err, err)
	}
}

// options says how to compare what is observed with what is wanted.
func (t *turn) options() netcfg.Options {
	return netcfg.Options{Now: t.now, Prune: t.wanted.Prune}
}

// turn looks at everything and does what there is to do.
func (d *daemon) turn(ctx context.Context) turn {
	in := d.input(d.gossip.View(), time.Now())
	in.LastHeard = d.gossip.LastHeard()
	t := turn{now: in.Now, cfg: d.cfg, view: in.View}
	if d.memory.SawDuplicate(in) {
		t.fatal = ErrDuplicate
		return t
	}
	t.note(nil, d.server.EnsureListening())
	t.note(nil, d.adopt(in.View.Cluster))
	facts, err := d.host.Facts(ctx)
	if err != nil {
		t.note(nil, err)
		return t
	}
	in.Facts = facts
	d.announce(&t, &in)
	t.note(d.serveMetrics(), nil)
	known := d.configure(ctx, &t, &in)
	d.conclude(ctx, &t, in, known)
	t.note(nil, d.remember(t.now, false))
	t.sessions = d.memory.Sessions
	return t
}

// announce tells the others what there is to tell.
func (d *daemon) announce(t *turn, in *node.Input) {
	in.Results = d.prober.Results()
	a := d.memory.Announce(*in)
	t.note(a.Problems, d.publishRecord(a, t.now))
	t.note(nil, d.publishVerdicts(a, in.View))
	t.wakeIn(a.RecheckAfter)
	in.View, in.Promise = d.gossip.View(), d.promise()
	t.view = in.View
	if !reflect.DeepEqual(in.View.Cluster, d.used) { // others have spoken meanwhile
		t.note(nil, d.adopt(in.View.Cluster))
	}
}

// configure brings the host to where it should be, and reports whether it is known what it
// has then.
func (d *daemon) configure(ctx context.Context, t *turn, in *node.Input) (known bool) {
	in.Resolved = d.names.resolve(hostNames(in.View.Records), t.now)
	t.wanted = d.memory.Configure(*in)
	t.note(t.wanted.Problems, nil)
	t.note(d.names.problems(in.View.Records), nil)
	t.note(d.refused, nil)
	observed, err := d.observe(ctx, t.wanted.Desired)
	if err != nil {
		t.note(nil, err)
		return false
	}
	t.observed = observed
	t.note(nil, d.change(ctx, t, t.options()))
	return true
}

// conclude does what follows from what the host has, in this order: before the host has its
// routes, what goes to an address in the mesh would leave by the default route, and a pod
// that starts can't move to another address.
func (d *daemon) conclude(ctx context.Context, t *turn, in node.Input, known bool) {
	observed := &t.observed
	if !known {
		observed = nil
	}
	in.Results = d.prober.Results()
	c := d.memory.Conclude(in, t.wanted, observed)
	t.note(c.Problems, nil)
	t.wakeIn(c.RecheckAfter)
	if err := d.reachOut(ctx, t, c.Handshakes); err != nil {
		t.note(nil, err)
		c.HasAddresses, c.Watch = false, probe.Watch{} // what the host has is not known any more
	}
	t.watch, t.results = c.Watch, in.Results
	t.note(d.answerClients(*t), nil)
	d.gossip.SetAddresses(d.gossipAddresses(*t, c.HasAddresses))
	t.note(d.watch(c.Watch), nil)
	podsMayStart := d.applyCNI(t, c.ClaimWait)
	k3sMayStart := d.applyK3s(t, c.ClaimWait)
	if podsMayStart && k3sMayStart && c.HasAddresses {
		d.ready(t, c.ReadyWait)
	}
	t.note(nil, d.forget(c.Forget))
}

// ProblemMetrics says that metrics can't be served.
const ProblemMetrics mesh.ProblemKind = "metrics"

// serveMetrics sees that metrics are served. The mesh does not wait for it.
func (d *daemon) serveMetrics() []mesh.Problem {
	err := d.monitor.EnsureListening(d.cfg.Metrics.Listen)
	if err == nil {
		return nil
	}
	return []mesh.Problem{{
		Kind: ProblemMetrics, Node: d.cfg.Node.Name, Text: err.Error(),
		Advice: `set metrics.listen to an address and port of this host that nobody uses, or to "" for no metrics; then run: systemctl reload meshd`,
	}}
}

// observe looks at what is ours on the host.
func (d *daemon) observe(ctx context.Context, desired netcfg.State) (netcfg.State, error) {
	observed, err := d.host.Observe(ctx, desired)
	if err != nil {
		return netcfg.State{}, fmt.Errorf("observe host: %w", err)
	}
	d.memory.Sessions, observed = d.memory.Sessions.Correct(observed, time.Now())
	return observed, nil
}

// change applies the difference between observed and desired. It does what can be done;
// what the host has afterwards is what there is to go on with.
func (d *daemon) change(ctx context.Context, t *turn, o netcfg.Options) error {
	plan := netcfg.Diff(t.observed, t.wanted.Desired, o)
	if plan.Empty() {
		return nil
	}
	refused, err := host.SplitRefused(d.host.Apply(ctx, plan))
	t.refused = t.refused || len(refused) > 0
	t.note(refusedProblems(d.cfg.Node.Name, refused), nil)
	observed, observeErr := d.observe(ctx, t.wanted.Desired)
	if err = errors.Join(err, observeErr); err != nil {
		err = fmt.Errorf("apply plan: %w", err)
	}
	t.observed = observed
	return err
}

// ProblemRefused says that the kernel does not take a route, an entry or a peer.
const ProblemRefused mesh.ProblemKind = "kernel-refuses"

// refusedProblems names the steps that the kernel refused. They are no failure of the turn:
// others may have asked for what can't be.
func refusedProblems(node string, steps []*host.RefusedStep) (problems []mesh.Problem) {
	for _, r := range steps {
		problems = append(problems, mesh.Problem{
			Kind: ProblemRefused, Node: node, Text: r.Error(),
			Advice: "if another program has set up the same here, remove that; else see which node gives this away (meshd status), and change it there",
		})
	}
	return problems
}

// reachOut brings about handshakes with peers that have none.
func (d *daemon) reachOut(ctx context.Context, t *turn, out node.HandshakePlan) (err error) {
	if len(out.Renew) > 0 {
		options := t.options()
		options.Renew = out.Renew
		err = d.change(ctx, t, options)
	}
	for _, a := range out.Initiate {
		if err := d.host.InitiateHandshake(ctx, a); err != nil {
			d.log.Debug("speak to peer", "addr", a, "err", err)
		}
	}
	return err
}

// cniConfig is what the CNI configuration follows from. It is for the control
// socket's goroutines too, and takes what changes from the turn.
func (d *daemon) cniConfig(t turn) cni.Config {
	return cni.Config{
		ConfDir: t.cfg.CNI.ConfDir, BinDir: t.cfg.CNI.BinDir, PluginSource: t.cfg.CNI.PluginSource,
		Bridge: t.cfg.CNI.Bridge, PodCIDRs: t.wanted.Topology.PodCIDRs, MTU: t.wanted.Desired.Device.MTU,
	}
}

// applyCNI puts the CNI configuration and plugins in place, once there are pod CIDRs to
// write into it. It reports whether they are, or are not wanted.
func (d *daemon) applyCNI(t *turn, claimWait time.Duration) (done bool) {
	if !d.cfg.CNI.Enabled || len(t.wanted.Topology.PodCIDRs) == 0 {
		return !d.cfg.CNI.Enabled
	}
	if claimWait > 0 {
		t.wakeIn(claimWait)
		return false
	}
	problems, err := d.installCNI(d.cniConfig(*t))
	t.note(problems, err)
	return err == nil
}

// installCNI puts a CNI configuration and the plugins in place.
func (d *daemon) installCNI(cfg cni.Config) ([]mesh.Problem, error) {
	// Pods start as soon as containerd sees the file, and can't move then.
	if err := d.promiseReady(); err != nil {
		return nil, err
	}
	observed, err := cni.Observe(cfg)
	if err != nil {
		return nil, fmt.Errorf("observe CNI: %w", err)
	}
	problems := cni.Problems(cfg, observed)
	for i := range problems {
		problems[i].Node = d.cfg.Node.Name
	}
	changes, err := cni.Plan(cfg, observed)
	if err = errors.Join(err, d.services.ApplyCNI(changes)); err != nil {
		return problems, fmt.Errorf("install CNI configuration: %w", explainReadOnly(err, directories(changes)...))
	}
	return problems, nil
}

// report publishes what a turn saw and returns how soon a failed one is taken again.
func (d *daemon) report(t turn, retry time.Duration) time.Duration {
	if t.err == nil && d.complaint != (complaint{}) {
		d.complaint = complaint{}
		d.log.Info("reconcile works again")
	}
	if t.err != nil && d.complaint.isNew(t.err, t.now) {
		d.log.Error("reconcile", "err", shownError(t.err))
	}
	if t.err != nil || t.refused {
		retry = min(max(2*retry, retryMin), retryMax)
	} else {
		retry = 0
	}
	status := d.status(t)
	d.tell(d.shown, status)
	d.show(status, t)
	d.metrics.Turn(status, time.Since(t.now))
	d.services.Notify("STATUS=" + sentence(status))
	d.feedWatchdog()
	return retry
}

// complainAgain is how often an error that stays is logged; meshd status shows it
// all the time.
const complainAgain = time.Hour

// complaint is what was logged last of turns that fail, until one succeeds.
type complaint struct {
	text string
	at   time.Time
}

// isNew says whether an error is worth a line in the log.
func (c *complaint) isNew(err error, now time.Time) bool {
	if text := err.Error(); text != c.text || now.Sub(c.at) >= complainAgain {
		c.text, c.at = text, now
		return true
	}
	return false
}

// gossipAddresses are the addresses under which each node's gossip port may be reached.
// The underlay comes first, also where the tunnel works: a node learns from its
// peers under which address they see it, and through the tunnel they don't. For
// the same reason an internal IP counts in its own location only: elsewhere it
// is reached through the tunnel, and would pass for an endpoint. Overlay addresses
// come last, and only once this host has routes to them.
func (d *daemon) gossipAddresses(t turn, through bool) map[mesh.ID][]netip.AddrPort {
	paths := make(map[mesh.ID][]netip.AddrPort, len(t.view.Records))
	for _, r := range t.view.Records {
		id := r.ID()
		if id == d.identity.ID() {
			continue
		}
		var list []netip.AddrPort
		if host, port, err := net.SplitHostPort(r.GossipAddr); err == nil {
			if p, err := net.LookupPort("udp", port); err == nil {
				list = append(list, at(addrsOf(host, t.wanted.Input.Resolved), uint16(p))...)
			}
		}
		if r.Location != "" && r.Location == d.memory.Own.Location {
			list = append(list, lan(r)...)
		}
		for _, e := range r.Endpoints {
			list = append(list, at(addrsOf(e.Host, t.wanted.Input.Resolved), r.GossipPort)...)
		}
		// What names resolve to is others' word, too.
		list = slices.DeleteFunc(list, func(a netip.AddrPort) bool { return !d.cfg.Cluster.Outside(a.Addr()) })
		if through && r.Claim.Slot != mesh.None && r.Claim.Slot < d.cfg.Cluster.Slots() {
			list = append(list, at(d.cfg.Cluster.Overlays(r.Claim.Slot), r.GossipPort)...)
		}
		paths[id] = list
	}
	return paths
}

// lan are the gossip addresses of a node on its private network.
func lan(r mesh.Record) []netip.AddrPort {
	var list []netip.AddrPort
	for _, ip := range r.InternalIPs {
		list = append(list, netip.AddrPortFrom(ip.Addr(), r.GossipPort))
	}
	return list
}

func at(addrs []netip.Addr, port uint16) []netip.AddrPort {
	list := make([]netip.AddrPort, 0, len(addrs))
	for _, a := range addrs {
		list = append(list, netip.AddrPortFrom(a, port))
	}
	return list
}

// addrsOf returns the addresses of a host that is an address or a name.
func addrsOf(host string, resolved map[string][]netip.Addr) []netip.Addr {
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{a}
	}
	return resolved[host]
}

// hostNames are those hosts in the records that have to be resolved: of each node
// as many as an honest one has, and first those of nodes whose slots are theirs, in
// the order of their claims, so that nobody who comes later crowds them out.
func hostNames(records []mesh.Record) []string {
	owners := mesh.SlotOwners(records)
	named := make([]mesh.Record, 0, len(records))
	for _, r := range records {
		if len(namesOf(r)) > 0 {
			named = append(named, r)
		}
	}
	rank := func(r mesh.Record) int {
		if owner, ok := owners[r.Claim.Slot]; ok && owner == r.ID() {
			return 0
		}
		return 1
	}
	slices.SortStableFunc(named, func(a, b mesh.Record) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a.Claim.Time, b.Claim.Time), a.ID().Compare(b.ID()))
	})
	var hosts []string
	seen := make(map[string]bool)
	for _, r := range named {
		for _, host := range namesOf(r) {
			if !seen[host] && len(hosts) < maxNames {
				seen[host] = true
				hosts = append(hosts, host)
			}
		}
	}
	return hosts
}

// namesOf are the names among the hosts of one node.
func namesOf(r mesh.Record) []string {
	var hosts []string
	add := func(host string) {
		if _, err := netip.ParseAddr(host); err != nil && host != "" && len(hosts) < namesPerNode && !slices.Contains(hosts, host) {
			hosts = append(hosts, host)
		}
	}
	if host, _, err := net.SplitHostPort(r.GossipAddr); err == nil {
		add(host)
	}
	for _, e := range r.Endpoints {
		add(e.Host)
	}
	return hosts
}

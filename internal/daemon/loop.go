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

// turn is what one turn of the loop saw and did.
type turn struct {
	now      time.Time
	cfg      config.Config
	view     mesh.View
	heard    map[mesh.ID]time.Time   // when something came from each node, outside of the mesh
	resolved map[string][]netip.Addr // hosts in the records that are names
	facts    netcfg.Facts
	input    mesh.Input
	topology mesh.Topology
	settings netcfg.Settings
	watch    probe.Watch
	results  map[probe.Target]probe.Result
	desired  netcfg.State
	options  netcfg.Options
	observed netcfg.State // after the turn's changes
	sessions node.Sessions
	cni      bool // the CNI configuration is in place, or not wanted
	k3s      bool // k3s's configuration is in place, or not wanted
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
		retry = d.conclude(t, retry)
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

// wakeIn asks for another turn in d at the latest.
func (t *turn) wakeIn(d time.Duration) {
	d = max(d, gather)
	if t.again == 0 || d < t.again {
		t.again = d
	}
}

// turn looks at everything and does what there is to do. Its parts do not
// depend on each other's success where they need not: a full disk stops no
// tunnel, and a broken CNI directory no route.
func (d *daemon) turn(ctx context.Context) turn {
	t := turn{now: time.Now(), cfg: d.cfg, view: d.gossip.View(), heard: d.gossip.Heard()}
	if d.memory.SawDuplicate(d.input(t.view, netcfg.Facts{}, t.now)) {
		t.fatal = ErrDuplicate
		return t
	}
	t.err = errors.Join(d.server.Keep(), d.adopt(t.view.Cluster))
	facts, err := d.host.Facts(ctx)
	if err != nil {
		t.err = errors.Join(t.err, err)
		return t
	}
	t.facts = facts
	in := d.input(t.view, facts, t.now)
	in.Heard, in.Results = t.heard, d.prober.Results()
	announcement := d.memory.Announce(in)
	t.problems = append(t.problems, announcement.Problems...)
	if announcement.Again > 0 {
		t.wakeIn(announcement.Again)
	}
	t.err = errors.Join(t.err, d.publishRecord(announcement, t.now), d.publishVerdicts(announcement, t.view))
	t.view = d.gossip.View()                        // with what was announced
	if !reflect.DeepEqual(t.view.Cluster, d.used) { // others have spoken meanwhile
		t.err = errors.Join(t.err, d.adopt(t.view.Cluster))
	}
	d.serveMetrics(&t)
	t.resolved = d.names.resolve(hostNames(t.view.Records), t.now)
	in = d.input(t.view, facts, t.now)
	in.Resolved = t.resolved
	c := d.memory.Configure(in)
	t.options = netcfg.Options{Now: t.now, Prune: d.start(t.view, t.now).MayPrune()}
	t.input, t.topology, t.settings, t.desired = c.Input, c.Topology, c.Settings, c.Desired
	t.problems = append(t.problems, c.Problems...)
	t.problems = append(t.problems, d.names.problems(t.view.Records)...)
	t.problems = append(t.problems, d.refused...)
	observed, err := d.applyHost(ctx, &t)
	t.err = errors.Join(t.err, err)
	t.results = d.prober.Results()
	in.Results = t.results
	conclusion := d.memory.Conclude(in, c, observed)
	t.watch = conclusion.Watch
	t.problems = append(t.problems, conclusion.Problems...)
	if conclusion.Again > 0 {
		t.wakeIn(conclusion.Again)
	}
	if err := d.reachOut(ctx, &t, conclusion.Outreach); err != nil {
		t.err = errors.Join(t.err, err)
		conclusion.HasAddresses = false // what the host has is not known any more
	}
	d.answerClients(&t)
	// Only now: before the host has its routes, what goes to an address in the mesh
	// would leave by the default route.
	d.gossip.SetPaths(d.paths(t, conclusion.HasAddresses))
	t.problems = append(t.problems, d.watch(conclusion.Watch)...)
	t.err = errors.Join(t.err, d.applyCNI(&t, conclusion.ClaimWait))
	t.err = errors.Join(t.err, d.applyK3s(&t, conclusion.ClaimWait))
	t.err = errors.Join(t.err, d.ready(&t, conclusion))
	t.err = errors.Join(t.err, d.forget(conclusion.Forget))
	t.err = errors.Join(t.err, d.remember(t.now, false))
	t.sessions = d.memory.Sessions
	return t
}

// ProblemMetrics says that metrics can't be served.
const ProblemMetrics mesh.ProblemKind = "metrics"

// serveMetrics sees that metrics are served. The mesh does not wait for it.
func (d *daemon) serveMetrics(t *turn) {
	if err := d.monitor.Keep(t.cfg.Metrics.Listen); err != nil {
		t.problems = append(t.problems, mesh.Problem{
			Kind: ProblemMetrics, Node: t.cfg.Node.Name, Text: err.Error(),
			Advice: `set metrics.listen to an address and port of this host that nobody uses, or to "" for no metrics; then run: systemctl reload meshd`,
		})
	}
}

// applyHost brings device, peers, routes and rules to where they should be. It returns what
// the host has then, nil if that is not known.
func (d *daemon) applyHost(ctx context.Context, t *turn) (*netcfg.State, error) {
	observed, err := d.observe(ctx, *t)
	if err != nil {
		return nil, err
	}
	t.observed = observed
	return &t.observed, d.change(ctx, t, t.options)
}

// observe looks at what is ours on the host.
func (d *daemon) observe(ctx context.Context, t turn) (netcfg.State, error) {
	observed, err := d.host.Observe(ctx, t.desired)
	if err != nil {
		return netcfg.State{}, fmt.Errorf("observe host: %w", err)
	}
	d.memory.Sessions, observed = d.memory.Sessions.Correct(observed, time.Now())
	return observed, nil
}

// change applies the difference between observed and desired. It does what can
// be done; what the host has afterwards is what there is to go on with.
func (d *daemon) change(ctx context.Context, t *turn, o netcfg.Options) error {
	plan := netcfg.Diff(t.observed, t.desired, o)
	if plan.Empty() {
		return nil
	}
	refused, err := host.SplitRefused(d.host.Apply(ctx, plan))
	t.refuse(refused)
	observed, observeErr := d.observe(ctx, *t)
	if err = errors.Join(err, observeErr); err != nil {
		err = fmt.Errorf("apply plan: %w", err)
	}
	t.observed = observed
	return err
}

// ProblemRefused says that the kernel does not take a route, an entry or a peer.
const ProblemRefused mesh.ProblemKind = "kernel-refuses"

// refuse names the steps that the kernel refused. Each is a problem of its own, and
// no failure of the turn: others may have asked for what can't be.
func (t *turn) refuse(steps []*host.RefusedStep) {
	for _, r := range steps {
		t.refused = true
		t.problems = append(t.problems, mesh.Problem{
			Kind: ProblemRefused, Node: t.cfg.Node.Name, Text: r.Error(),
			Advice: "if another program has set up the same here, remove that; else see which node gives this away (meshd status), and change it there",
		})
	}
}

// reachOut brings about handshakes with peers that have none.
func (d *daemon) reachOut(ctx context.Context, t *turn, out node.Outreach) error {
	var err error
	if len(out.Renew) > 0 {
		options := t.options
		options.Renew = out.Renew
		err = d.change(ctx, t, options)
	}
	for _, a := range out.Speak {
		if err := d.host.Speak(ctx, a); err != nil {
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
		Bridge: t.cfg.CNI.Bridge, PodCIDRs: t.topology.PodCIDRs, MTU: t.desired.Device.MTU,
	}
}

// applyCNI puts the CNI configuration and plugins in place, once there are pod
// CIDRs to write into it.
func (d *daemon) applyCNI(t *turn, claimWait time.Duration) error {
	if !d.cfg.CNI.Enabled || len(t.topology.PodCIDRs) == 0 {
		t.cni = !d.cfg.CNI.Enabled
		return nil
	}
	if claimWait > 0 {
		t.wakeIn(claimWait)
		return nil
	}
	// Pods start as soon as containerd sees the file, and can't move then.
	if err := d.promiseReady(); err != nil {
		return err
	}
	cfg := d.cniConfig(*t)
	observed, err := cni.Observe(cfg)
	if err != nil {
		return fmt.Errorf("observe CNI: %w", err)
	}
	for _, p := range cni.Problems(cfg, observed) {
		p.Node = d.cfg.Node.Name
		t.problems = append(t.problems, p)
	}
	changes, err := cni.Plan(cfg, observed)
	if err = errors.Join(err, d.services.ApplyCNI(changes)); err != nil {
		return fmt.Errorf("install CNI configuration: %w", explainReadOnly(err, directories(changes)...))
	}
	t.cni = true
	return nil
}

// conclude publishes what a turn saw and says how soon a failed one is taken
// again.
func (d *daemon) conclude(t turn, retry time.Duration) time.Duration {
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

// paths are the addresses under which each node's gossip port may be reached.
// The underlay comes first, also where the tunnel works: a node learns from its
// peers under which address they see it, and through the tunnel they don't. For
// the same reason an internal IP counts in its own location only: elsewhere it
// is reached through the tunnel, and would pass for an endpoint. Overlay addresses
// come last, and only once this host has routes to them.
func (d *daemon) paths(t turn, through bool) map[mesh.ID][]netip.AddrPort {
	paths := make(map[mesh.ID][]netip.AddrPort, len(t.view.Records))
	for _, r := range t.view.Records {
		id := r.ID()
		if id == d.identity.ID() {
			continue
		}
		var list []netip.AddrPort
		if host, port, err := net.SplitHostPort(r.GossipAddr); err == nil {
			if p, err := net.LookupPort("udp", port); err == nil {
				list = append(list, at(addrsOf(host, t.resolved), uint16(p))...)
			}
		}
		if r.Location != "" && r.Location == d.memory.Own.Location {
			list = append(list, lan(r)...)
		}
		for _, e := range r.Endpoints {
			list = append(list, at(addrsOf(e.Host, t.resolved), r.GossipPort)...)
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
	owners := mesh.Owners(records)
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

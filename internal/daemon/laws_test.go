// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshd/meshd/internal/cni"
	"github.com/meshd/meshd/internal/config"
	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg"
	"github.com/meshd/meshd/internal/netcfg/host"
	"github.com/meshd/meshd/internal/node"
	"github.com/meshd/meshd/internal/path"
	"github.com/meshd/meshd/internal/path/agent"
	"github.com/meshd/meshd/internal/state"
)

// law is an order of effects in a section: each that matches first comes before each that
// matches then.
type law struct {
	name        string
	first, then string
	in          string // the section's title; a turn if it is empty
}

// online is what systemd is told once meshd status --wait lets k3s start.
const online = `STATUS=online`

var laws = []law{
	{name: "the control socket is open before anything else is done", first: `^controlServer\.EnsureListening`, then: `^(disk|kernel|network|prober|services)\.`},
	{name: "adopted settings are on disk before the host is changed", first: `^disk\.SaveNode.* adopted`, then: `^kernel\.Apply`},
	{name: "the host is read before anything is published", first: `^kernel\.Facts`, then: `^network\.`},
	{name: "a claim is published before its address is used", first: `^network\.Publish.* slot \d`, then: `^kernel\.Apply.*\+address`},
	{name: "a verdict takes effect in the turn that publishes it", first: `^network\.PublishVerdict`, then: `^kernel\.Apply`},
	{name: "the host is observed before it is changed", first: `^kernel\.Facts`, then: `^kernel\.(Observe|Apply)`},
	{name: "peers are set before handshakes start", first: `^kernel\.Apply`, then: `^kernel\.InitiateHandshake`},
	{name: "a peer that does not answer is renewed before the next handshake", first: `^kernel\.Apply +-peer (\S+), \+peer`, then: `^kernel\.InitiateHandshake`},
	{name: "addresses exist before a server listens at them", first: `^kernel\.Apply`, then: `^clientServer\.EnsureListening`},
	{name: "routes exist before gossip uses overlay addresses", first: `^kernel\.Apply`, then: `^network\.SetAddresses`},
	{name: "routes exist before probes are sent", first: `^kernel\.Apply`, then: `^prober\.SetTargets`},
	{name: "the host is ready before a pod can start", first: `^kernel\.Apply`, then: `^services\.(ApplyCNI +\d|WriteK3s)`},
	{name: "that pods may run is on disk before the CNI configuration", first: `^disk\.SaveNode.* pods may run`, then: `^services\.ApplyCNI +\d`},
	{name: "that pods may run is on disk before k3s has its configuration", first: `^disk\.SaveNode.* pods may run`, then: `^services\.WriteK3s`},
	{name: "that pods may run is on disk before k3s may start", first: `^disk\.SaveNode.* pods may run`, then: online},
	{name: "k3s starts when everything is in place", first: `^kernel\.Apply|^network\.SetAddresses|^services\.(ApplyCNI|WriteK3s)`, then: online},
	{name: "a node that was forgotten is so on disk in the same turn", first: `^network\.Forget`, then: `^disk\.SaveObjects`},
	{name: "objects are saved at the end of the turn", first: `^(kernel|network|prober|clientServer)\.|^services\.(ApplyCNI|WriteK3s)`, then: `^disk\.SaveObjects`},
	{name: "systemd gets the status when the turn is over", first: `^(disk|kernel|network|prober|clientServer)\.`, then: `STATUS=|WATCHDOG=1`},

	{name: "a duplicate knows of it at its next start, whatever becomes of its device", first: `^disk\.SaveNode.* a duplicate`, then: `^kernel\.TakeDown`},

	{name: "a client is known before it is saved", first: `^network\.AddClient`, then: `^disk\.SaveObjects`, in: "meshd client add laptop"},
	{name: "a client's removal is known before it is saved", first: `^network\.RemoveClient`, then: `^disk\.SaveObjects`, in: "meshd client remove laptop"},
	{name: "a reload begins before it changes anything", first: `RELOADING=1`, then: `^(kernel|network)\.`, in: "SIGHUP"},
	{name: "a reload ends when gossip has the new settings", first: `^network\.Reconfigure`, then: `READY=1`, in: "SIGHUP"},
	{name: "systemd is told of the end before the disk is written", first: `STOPPING=1`, then: `^disk\.SaveObjects`, in: "SIGTERM"},
}

// TestLaws checks each law in all sections of all scenarios. At least one section must have
// both effects.
func TestLaws(t *testing.T) {
	traces := make(map[string]*trace)
	for _, s := range scenarios {
		t.Run("scenario "+s.name, func(t *testing.T) { traces[s.name] = play(t, s) })
	}
	for _, l := range laws {
		t.Run(l.name, func(t *testing.T) {
			first, then := regexp.MustCompile(l.first), regexp.MustCompile(l.then)
			seen := 0
			for name, tr := range traces {
				for _, s := range tr.sections {
					if title := s.title; title != l.in && (title != inTurn || l.in != "") {
						continue
					}
					last, next := s.last(first), s.next(then)
					if last < 0 || next < 0 {
						continue
					}
					seen++
					if last > next {
						t.Errorf("%s, %s at %v:\n%s\ncomes before\n%s", name, s.title, s.at, s.effects[next], s.effects[last])
					}
				}
			}
			if seen == 0 {
				t.Errorf("nowhere is both %s and %s", l.first, l.then)
			}
		})
	}
}

// TestOnDiskBeforeTold: a record is on disk before it is published.
func TestOnDiskBeforeTold(t *testing.T) {
	told := regexp.MustCompile(`^network\.Publish +(sequence \d+, slot \w+( confirmed)?)`)
	seen := 0
	for _, s := range scenarios {
		saved := ""
		for _, section := range play(t, s).sections {
			for _, e := range section.effects {
				switch m := told.FindStringSubmatch(e.String()); {
				case e.call == "disk.SaveNode" && e.err == nil:
					saved = e.text
				case m != nil:
					seen++
					if !strings.HasPrefix(saved+",", m[1]+",") {
						t.Errorf("%s, %s at %v: told %s, and on disk is %s", s.name, section.title, section.at, m[1], saved)
					}
				}
			}
		}
	}
	if seen == 0 {
		t.Error("nothing was told")
	}
}

// next returns the index of the first effect of a section that matches, -1 for none.
func (s *section) next(what *regexp.Regexp) int {
	return slices.IndexFunc(s.effects, func(e effect) bool { return what.MatchString(e.String()) })
}

// last returns the index of the last effect of a section that matches, -1 for none.
func (s *section) last(what *regexp.Regexp) int {
	for i, e := range slices.Backward(s.effects) {
		if what.MatchString(e.String()) {
			return i
		}
	}
	return -1
}

func scenarioNamed(name string) scenario {
	return scenarios[slices.IndexFunc(scenarios, func(s scenario) bool { return s.name == name })]
}

// after returns the sections of a scenario after the one with a title.
func after(t *testing.T, name, title string) []*section {
	t.Helper()
	all := play(t, scenarioNamed(name)).sections
	i := slices.IndexFunc(all, func(s *section) bool { return s.title == title })
	if i < 0 {
		t.Fatalf("scenario %s has no section %q", name, title)
	}
	return all[i+1:]
}

// find returns the sections with an effect that matches.
func find(all []*section, what string) (found []*section) {
	for _, s := range all {
		if s.next(regexp.MustCompile(what)) >= 0 {
			found = append(found, s)
		}
	}
	return found
}

// TestNothingIsPrunedBeforeGossipHasSettled: after a start, peers and routes of nodes that
// are not known yet stay until another node was heard, or for node.PruneAfter.
func TestNothingIsPrunedBeforeGossipHasSettled(t *testing.T) {
	const pruned = `^kernel\.Apply.* -`
	start := func(all []*section) time.Duration { return all[0].at }
	alone := after(t, "restart-alone", "start")
	for _, s := range find(alone, pruned) {
		if s.at-start(alone) < node.PruneAfter {
			t.Errorf("alone, at %v:\n%v", s.at, s.effects)
		}
	}
	heard := after(t, "restart", "b1 is heard")
	all := after(t, "restart", "start")
	if early := find(all[:len(all)-len(heard)], pruned); len(early) > 0 {
		t.Errorf("before anybody was heard, at %v:\n%v", early[0].at, early[0].effects)
	}
	if len(find(alone, pruned)) == 0 || len(find(heard, pruned)) == 0 {
		t.Error("nothing is pruned at all")
	}
}

// TestHostIsObservedAfterAChange: a turn goes on with what the host has, not with what it
// should have.
func TestHostIsObservedAfterAChange(t *testing.T) {
	for _, s := range find(after(t, "peer", "b1 appears"), `^kernel\.Apply`) {
		if i := s.last(regexp.MustCompile(`^kernel\.Apply`)); s.effects[i+1].call != "kernel.Observe" {
			t.Errorf("at %v: after a change comes %s", s.at, s.effects[i+1])
		}
	}
}

// TestVerdictFollowsTheRecordThatItPresupposes: a gateway that was replaced first publishes
// a record without a term, then the verdict that it is up, both in one turn.
func TestVerdictFollowsTheRecordThatItPresupposes(t *testing.T) {
	found := find(after(t, "replaced-undo", "meshd drain --undo"), `^network\.PublishVerdict.* a1 is up`)
	if len(found) != 1 {
		t.Fatalf("got %d turns with that verdict, want 1", len(found))
	}
	record, verdict := found[0].next(regexp.MustCompile(`^network\.Publish `)), found[0].next(regexp.MustCompile(`^network\.PublishVerdict`))
	if record < 0 || record > verdict {
		t.Errorf("at %v:\n%v", found[0].at, found[0].effects)
	}
}

// TestPathsNeedNoTurn: what changes of the paths is told and tried between two turns, and shown.
func TestPathsNeedNoTurn(t *testing.T) {
	const heard = "b1 tells where it is reached"
	changed := play(t, scenarioNamed("paths")).sections
	changed = changed[slices.IndexFunc(changed, func(s *section) bool { return s.title == heard }):]
	turns := 0 // that don't follow from a record, which says once that this host is behind NAT
	for _, s := range changed {
		if s.title == inTurn && s.last(regexp.MustCompile(`^network\.Publish `)) < 0 {
			turns++
		}
	}
	if turns > 1 { // the one that takes the record in
		t.Errorf("got %d turns without a record:\n%v", turns, changed)
	}
	if len(find(changed, `^paths\.SetPeers .*198\.51\.100\.11:40001`)) != 1 || len(find(changed, `^network\.PublishPath .*seen 198\.51\.100\.1:40000`)) != 1 ||
		len(find(changed, `^network\.PublishPath .*seen 198\.51\.100\.1:40002`)) != 1 {
		t.Error("the path is not tried, or this node does not tell where it is seen")
	}
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, standsAlone)
		settled(w, w.b1())
		w.paths.find(agent.PeerStatus{
			ID: w.b1().ID(), Report: path.Report{Path: path.Path{Kind: path.Direct, Addr: netip.MustParseAddrPort("198.51.100.11:40001")}, Proved: true, RTT: time.Second},
		})
		w.pass(2 * spacing)
		if p := w.d.Status().Peers[0].Path; p.Kind != control.PathDirect || !p.Proved || p.Addr.Port() != 40001 || p.RTT.Duration() != time.Second {
			t.Errorf("status shows %+v", p)
		}
		w.end()
	})
}

// TestRelayedPath: status shows through which node packets travel, by name.
func TestRelayedPath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, standsAlone)
		settled(w, w.b1(), w.c1())
		w.paths.find(agent.PeerStatus{
			ID:     w.b1().ID(),
			Report: path.Report{Path: path.Path{Kind: path.Relayed, Relay: path.ShortOf(w.c1().ID()), Addr: netip.MustParseAddrPort("203.0.113.12:7946")}, Proved: true},
		})
		w.paths.bind(path.BoundRelay{RelayAddr: path.RelayAddr{Relay: path.ShortOf(w.c1().ID())}, Kept: true})
		w.pass(2 * spacing)
		s := w.d.Status()
		if p := s.Peers[0].Path; p.Kind != control.PathRelayed || p.Relay != "c1" {
			t.Errorf("status shows %+v, want relayed via c1", p)
		}
		var tunnels []string
		graph, err := w.d.Graph()
		for _, p := range graph.Tunnels {
			tunnels = append(tunnels, p.Path)
		}
		if slices.Sort(tunnels); err != nil || !slices.Equal(tunnels, []string{"", "", "relayed"}) {
			t.Errorf("the graph has paths %q, %v, want that of this node to b1", tunnels, err)
		}
		if !slices.Equal(s.Node.Relays, []string{"c1"}) || s.Relay == nil {
			t.Errorf("status shows relays %v, and as a relay itself %+v, want c1, and some", s.Node.Relays, s.Relay)
		}
		w.end()
	})
}

// TestBrokenRelay: a node that can't forward tells nobody that it does, and says why.
func TestBrokenRelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, standsAlone)
		w.start()
		w.relay.damage(errors.New("no such option"))
		w.pass(2 * resync)
		s := w.d.Status()
		if !slices.ContainsFunc(s.Problems, func(p mesh.Problem) bool { return p.Kind == ProblemNoRelay }) || s.Reconcile.Error != "" {
			t.Errorf("got problems %v and error %q, want that it can't forward", s.Problems, s.Reconcile.Error)
		}
		if strings.Contains(w.network.path, "a relay") {
			t.Errorf("it tells %s", w.network.path)
		}
		w.end()
	})
}

// TestWhatIsNotOnDiskIsNotTold: with a full disk a node publishes no new record. A node
// that appears still gets its tunnel.
func TestWhatIsNotOnDiskIsNotTold(t *testing.T) {
	full := after(t, "full-disk", "the disk is full")
	again := after(t, "full-disk", "there is room again")
	full = full[:len(full)-len(again)]
	if told := find(full, `^network\.Publish(Verdict)? `); len(told) > 0 {
		t.Errorf("told at %v:\n%v", told[0].at, told[0].effects)
	}
	if len(find(full, `^kernel\.Apply.*\+peer c1`)) != 1 {
		t.Error("a full disk keeps a node from its tunnel")
	}
	if len(find(again, `^network\.Publish(Verdict)? `)) != 1 {
		t.Error("nothing is told when there is room again")
	}
}

// TestBlindTurnDoesNothing: a turn that can't read the host publishes, changes and saves
// nothing.
func TestBlindTurnDoesNothing(t *testing.T) {
	for _, s := range find(after(t, "blind", "b1 appears, and the kernel does not answer"), `^kernel\.Facts.*error`) {
		if s.next(regexp.MustCompile(`^(disk|network|prober)\.|^kernel\.(Observe|Apply|InitiateHandshake)|^services\.(ApplyCNI|WriteK3s)`)) >= 0 {
			t.Errorf("at %v:\n%v", s.at, s.effects)
		}
	}
}

// TestHostFailsAndTheTurnGoesOn: a change that the kernel refuses is tried again soon, and
// stops nothing else.
func TestHostFailsAndTheTurnGoesOn(t *testing.T) {
	failed := find(after(t, "apply-fails", "b1 appears, and the kernel takes nothing"), `^kernel\.Apply.*error`)
	if len(failed) < 2 || failed[1].at-failed[0].at > 2*retryMin {
		t.Fatalf("got %d turns that failed", len(failed))
	}
	if len(find(failed, `^disk\.SaveObjects`)) == 0 {
		t.Error("nothing is saved while the host fails")
	}
}

// TestIdleTurnWritesNothing: a turn with nothing to change has no effect.
func TestIdleTurnWritesNothing(t *testing.T) {
	turns := 0
	for _, s := range after(t, "first", "start") {
		if s.title == inTurn && s.at > node.ClaimSettlePeriod+time.Second {
			turns++
			if s.writes() {
				t.Errorf("at %v:\n%v", s.at, s.effects)
			}
		}
	}
	if turns < 5 {
		t.Errorf("got %d turns, want one each %v", turns, resync)
	}
}

// TestDuplicateGivesWayBeforeItSaysAnything: the turn that finds another daemon with this
// identity publishes nothing. It saves that, and takes the device down.
func TestDuplicateGivesWayBeforeItSaysAnything(t *testing.T) {
	all := after(t, "duplicate", "the other daemon tells its record")
	last := all[len(all)-1]
	var calls []string
	for _, e := range last.effects {
		calls = append(calls, e.call)
	}
	if got, want := strings.Join(calls, " "), "services.Notify disk.SaveNode kernel.TakeDown disk.SaveObjects"; got != want {
		t.Errorf("the last turn: got %s, want %s", got, want)
	}
}

// TestStopLeavesTheHost: the daemon's end changes nothing on the host, and publishes
// nothing.
func TestStopLeavesTheHost(t *testing.T) {
	for _, name := range []string{"first", "peer", "drain", "stop"} {
		all := play(t, scenarioNamed(name)).sections
		last := all[len(all)-1]
		if last.title != "SIGTERM" || last.next(regexp.MustCompile(`^(kernel|network|prober)\.|^services\.(ApplyCNI|WriteK3s)`)) >= 0 {
			t.Errorf("%s, %s:\n%v", name, last.title, last.effects)
		}
	}
}

// TestRenumberIsOnDiskBeforeItsAnswer: after a crash, the node has the slot that the
// command printed.
func TestRenumberIsOnDiskBeforeItsAnswer(t *testing.T) {
	saved := find(play(t, scenarioNamed("renumber")).sections, `^disk\.SaveNode.* slot 99`)
	if len(saved) == 0 || saved[0].title != "meshd renumber --force" {
		t.Error("the slot is not on disk when the command ends")
	}
}

// TestStartIsOnDiskBeforeAnythingElse: the number of a start is on disk before other nodes
// see it. With a full disk the daemon does not start.
func TestStartIsOnDiskBeforeAnythingElse(t *testing.T) {
	for _, name := range []string{"first", "restart", "reboot"} {
		for _, s := range play(t, scenarioNamed(name)).sections {
			if s.title == "start" && s.next(regexp.MustCompile(`^disk\.SaveNode.* a new start`)) != 0 {
				t.Errorf("%s: %v", name, s.effects)
			}
		}
	}
	d := newDaemon(Options{Logger: slog.New(slog.DiscardHandler)}, config.Config{})
	d.disk.dir = &fakeDisk{trace: &trace{sections: []*section{{}}}, identity: state.Identity{Key: identityKey(0)}, full: errors.New("no space")}
	if _, err := d.loadState("machine"); err == nil {
		t.Error("got a start that is not on disk")
	}
}

// TestRefusedReloadChangesNothing: nothing of a file with a mistake is taken over.
func TestRefusedReloadChangesNothing(t *testing.T) {
	all := after(t, "reload", "SIGHUP")
	i := slices.IndexFunc(all, func(s *section) bool { return s.title == "SIGHUP" })
	if refused := all[i]; len(refused.effects) != 2 || len(find(all[i:], `^network|^kernel\.Apply`)) > 0 {
		t.Errorf("got:\n%v\nwant that systemd hears of the beginning and the end", refused.effects)
	}
}

// TestDuplicateLeavesTheHostAlone: a node that stopped as a duplicate sets its device up
// again only when the other one is gone.
func TestDuplicateLeavesTheHostAlone(t *testing.T) {
	const applied = `^kernel\.Apply`
	if found := find(after(t, "duplicate-again", "start"), applied); len(found) > 0 {
		t.Errorf("the other one runs: at %v:\n%v", found[0].at, found[0].effects)
	}
	if found := find(after(t, "duplicate-gone", "start"), applied); len(found) == 0 {
		t.Error("the other one is gone, and the device stays down")
	}
}

// TestNewClaimIsNotOnline: when a node takes another slot, the daemon is not online before
// it is on disk that pods may run on the new addresses, also where others do the CNI.
func TestNewClaimIsNotOnline(t *testing.T) {
	bare := scenarioNamed("renumber")
	bare.name, bare.config = "renumber-bare", standsAlone+withoutCNI
	for _, s := range []scenario{bare, scenarioNamed("renumber"), scenarioNamed("other-half"), scenarioNamed("other-half-in-use")} {
		ready, again := true, false
		for _, section := range play(t, s).sections {
			for _, e := range section.effects {
				switch {
				case e.call == "disk.SaveNode":
					again = !ready
					ready = strings.Contains(e.text, "pods may run")
				case strings.HasPrefix(e.text, "STATUS=online") && !ready:
					t.Errorf("%s, %s at %v: online without having saved that pods may run", s.name, section.title, section.at)
				}
			}
		}
		if !ready || !again {
			t.Errorf("%s: pods may never run on the new addresses", s.name)
		}
	}
}

// TestNoPodOnAFormerSlot: a node that gives its slot up lets no pod start with an address of
// it, before other nodes hear of that, and also if there is no other slot for it.
func TestNoPodOnAFormerSlot(t *testing.T) {
	order := regexp.MustCompile(`^(services\.ApplyCNI|kernel\.RemoveBridge|disk\.SaveNode|network\.Publish)`)
	for _, name := range []string{"other-half", "other-half-in-use", "renumber"} {
		var calls []string
		for _, s := range play(t, scenarioNamed(name)).sections {
			for _, e := range s.effects {
				if order.MatchString(e.call) {
					calls = append(calls, e.call)
				}
			}
		}
		if got, want := strings.Join(calls, " "), "services.ApplyCNI kernel.RemoveBridge disk.SaveNode "; !strings.HasPrefix(got, want) {
			t.Errorf("%s: got %s, want %s and the rest", name, got, want)
		}
	}

	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "node: {name: a1, pod-cidr: [10.42.0.0/24]}")
		settled(w)
		conflist := filepath.Join(w.dir, "net.d", cni.FileName)
		if _, err := os.Stat(conflist); err != nil {
			t.Fatal(err)
		}
		w.meet(w.otherFirst())
		w.pass(10 * time.Second)
		if slot := w.d.Status().Node.Slot; slot != mesh.None {
			t.Fatalf("got slot %d, want none: the one of the configuration is another node's", slot)
		}
		if _, err := os.Stat(conflist); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("without a slot: got %v, want no %s", err, conflist)
		}
		w.end()
	})
}

// TestConflistWaitsForTheHost: pods get no network on a host that is not as it should be, and
// those that run keep theirs.
func TestConflistWaitsForTheHost(t *testing.T) {
	unset := &host.SysctlError{Key: "net.ipv4.ip_forward"} // no failure of the turn
	for name, test := range map[string]struct {
		refuse error
		lose   func(*netcfg.State)
	}{
		"the plan can't be applied":   {errors.New("no buffer space available"), func(s *netcfg.State) { s.Firewall = netcfg.Firewall{} }},
		"the addresses are not there": {unset, func(s *netcfg.State) { s.Addresses = nil }},
		"a parameter can't be set":    {unset, func(s *netcfg.State) { s.Sysctls = nil }},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, standsAlone)
				settled(w)
				conflist := filepath.Join(w.dir, "net.d", cni.FileName)
				exists := func() bool { _, err := os.Stat(conflist); return err == nil }
				w.kernel.change(func(k *fakeKernel) {
					k.refuse = test.refuse
					test.lose(&k.kernel.State)
				})
				w.pass(2 * resync)
				if !exists() {
					t.Error("the conflist was removed")
				}
				if err := os.Remove(conflist); err != nil {
					t.Fatal(err)
				}
				w.pass(2 * resync)
				if exists() {
					t.Error("a conflist was installed")
				}
				w.kernel.change(func(k *fakeKernel) { k.refuse = nil })
				w.pass(2 * resync)
				if !exists() {
					t.Error("no conflist was installed on a host that is as it should be")
				}
				w.end()
			})
		})
	}
}

// TestBridgeOfAFormerSlot: a bridge that can't be removed is tried again, and no pod starts
// before it is gone.
func TestBridgeOfAFormerSlot(t *testing.T) {
	for name, move := range map[string]func(*world){
		"by itself": func(w *world) { w.meet(w.otherFirst()) },
		"by command": func(w *world) {
			w.command("meshd renumber --force", func(ctx context.Context) error {
				_, err := w.d.Renumber(ctx, true)
				return err
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, standsAlone)
				settled(w)
				conflist := filepath.Join(w.dir, "net.d", cni.FileName)
				w.kernel.change(func(k *fakeKernel) { k.keepBridge = errors.New("delete bridge kube-bridge: device or resource busy") })
				move(w)
				w.pass(2 * resync)
				if s := w.d.Status(); s.Node.Slot == 0 || s.Node.Ready || !strings.Contains(s.Reconcile.Error, "kube-bridge") {
					t.Errorf("got slot %d, ready %t, error %q, want another slot, not ready, with the bridge in the error", s.Node.Slot, s.Node.Ready, s.Reconcile.Error)
				}
				if _, err := os.Stat(conflist); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("with the old bridge: got %v, want no %s", err, conflist)
				}
				w.kernel.change(func(k *fakeKernel) { k.keepBridge = nil })
				w.pass(2 * resync)
				if _, err := os.Stat(conflist); err != nil || !w.d.Status().Node.Ready {
					t.Errorf("without the old bridge: got %v, ready %t", err, w.d.Status().Node.Ready)
				}
				w.end()
			})
		})
	}
}

// TestDuplicateThatStaysUp: a daemon that can't take its device down does not stop for good:
// the next start takes it down.
func TestDuplicateThatStaysUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, standsAlone)
		settled(w)
		w.kernel.change(func(k *fakeKernel) { k.stayUp = errors.New("no buffer space available") })
		if err := w.meetDuplicate(); !errors.Is(err, w.kernel.stayUp) || errors.Is(err, ErrDuplicate) {
			t.Errorf("with the device up: got %v, want an error after which systemd starts the daemon again", err)
		}
		w.kernel.change(func(k *fakeKernel) { k.stayUp = nil })
		w.start()
		w.givesWay()
		if w.kernel.kernel.Device.Up {
			t.Error("the device is still up")
		}
	})
}

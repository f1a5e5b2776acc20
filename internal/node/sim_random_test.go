// SPDX-License-Identifier: Apache-2.0

package node_test

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/node"
)

// eventsPerSeed is how many events each random simulation has.
const eventsPerSeed = 25

// TestSimulation has things happen to three to nine nodes at random. Whenever it is calm
// again, everything has to be whole. What happens follows from the seed, which is the name
// of the subtest: -run TestSimulation/7.
func TestSimulation(t *testing.T) {
	total := 20_000
	if testing.Short() {
		total = 500
	}
	for seed := range total / eventsPerSeed {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			newChaos(t, uint64(seed)).run()
		})
	}
}

// chaos is a simulation in which things happen at random.
type chaos struct {
	*simulation
	slots   map[*host]int // of nodes whose pods may run
	drained map[*host]bool
	watched map[*host]bool // gateways for which others watched as of the last calm, under the same settings
}

// The sites of the random simulations. All at home are behind one address, and no other
// host is behind a NAT that lets nobody in.
var chaosSites = []struct {
	location string
	at       place
}{
	{"", place{0, routed}},
	{"", place{0, cloud}},
	{"a", place{1, cloud}},
	{"a", place{1, cloud}},
	{"b", place{2, routed}},
	{"b", place{2, routed}},
	{"c", place{3, home}},
}

func newChaos(t *testing.T, seed uint64) *chaos {
	c := &chaos{simulation: newSimulation(t, seed), slots: make(map[*host]int), drained: make(map[*host]bool), watched: make(map[*host]bool)}
	c.cluster = c.drawSettings(c.cluster)
	delays := make(map[[2]int]time.Duration)
	for i := range 10 {
		for j := range i {
			d := simTunnel + time.Duration(c.rng.Int64N(int64(200*time.Millisecond)))
			delays[[2]int{i, j}], delays[[2]int{j, i}] = d, d
		}
	}
	c.gossipDelay = func(from, to *host) time.Duration { return delays[[2]int{from.number, to.number}] }
	for i := range 3 + c.rng.IntN(7) {
		at := chaosSites[c.rng.IntN(len(chaosSites))]
		if i == 0 { // the one that the others join can be reached
			at = chaosSites[c.rng.IntN(2)]
		}
		h := c.add(fmt.Sprintf("n%d", i+1), at.location, at.at)
		if at.location != "" { // all of a location serve one network
			h.config.AllowedLocationIPs = []netip.Prefix{siteNetwork(at.at.site)}
			h.nearby = []mesh.AttachedNetwork{{Prefix: siteNetwork(at.at.site), Link: "eth2"}}
		}
	}
	return c
}

// drawSettings returns a cluster's settings with a higher generation.
func (c *chaos) drawSettings(cluster mesh.Cluster) mesh.Cluster {
	cluster.Generation++
	cluster.Mode = []mesh.Mode{mesh.ModeFull, mesh.ModeLocation, mesh.ModeLocation, mesh.ModeCross}[c.rng.IntN(4)]
	cluster.Encapsulation = []mesh.Encapsulation{mesh.EncapsulationAlways, mesh.EncapsulationAlways, mesh.EncapsulationCrossSubnet, mesh.EncapsulationNever}[c.rng.IntN(4)]
	cluster.Gateways = 1 + c.rng.IntN(2)
	return cluster
}

func (c *chaos) run() {
	c.note("%d nodes, %v", len(c.hosts), settingsOf(c.cluster))
	c.watchMembers()
	for _, h := range c.hosts {
		c.note("%s: location %q at %v", h.name, h.config.Location, h.place)
		c.after(c.upTo(2*time.Second), h.boot)
	}
	c.pass(2 * time.Second)
	c.calm()
	for left := eventsPerSeed; left > 0; {
		for range min(1+c.rng.IntN(4), left) {
			c.event()
			left--
			c.pass(c.upTo(4 * time.Second))
		}
		c.calm()
	}
}

func (c *chaos) upTo(most time.Duration) time.Duration {
	return time.Duration(c.rng.Int64N(int64(most)))
}

// pick returns a host at random of those that are fit, or nil.
func (c *chaos) pick(fit func(*host) bool) *host {
	var list []*host
	for _, h := range c.hosts {
		if fit(h) {
			list = append(list, h)
		}
	}
	if len(list) == 0 {
		return nil
	}
	return list[c.rng.IntN(len(list))]
}

func isRunning(h *host) bool { return h.running }

// event has something happen. If what was drawn can't happen now, something else does.
func (c *chaos) event() {
	events := []func() bool{
		c.stop, c.restart, c.killDaemon, c.crash, c.crash, c.powerOn, c.powerOn, c.split, c.cutOneWay, c.stick, c.stick, c.drain, c.drain,
		c.changeSettings, c.changeLocation, c.changeAddress, c.carryElsewhere, c.changeWish, c.forget, c.deleteDevice, c.loseWay,
	}
	for !events[c.rng.IntN(len(events))]() { //nolint:revive // until one can
	}
}

func (c *chaos) stop() bool {
	h := c.pick(isRunning)
	if h == nil {
		return false
	}
	c.note("%s: the daemon is stopped", h.name)
	h.stop()
	return true
}

func (c *chaos) killDaemon() bool {
	h := c.pick(isRunning)
	if h == nil {
		return false
	}
	c.note("%s: the daemon is killed", h.name)
	h.kill()
	return true
}

func (c *chaos) restart() bool {
	h := c.pick(isRunning)
	if h == nil {
		return false
	}
	c.note("%s: the daemon is restarted", h.name)
	h.stop()
	h.startDaemon()
	return true
}

// crash never takes the last three.
func (c *chaos) crash() bool {
	h := c.pick(func(h *host) bool { return h.powered })
	if c.powered() <= 3 || h == nil {
		return false
	}
	c.note("%s: no power", h.name)
	h.crash()
	return true
}

func (c *chaos) powered() (n int) {
	for _, h := range c.hosts {
		if h.powered {
			n++
		}
	}
	return n
}

func (c *chaos) powerOn() bool {
	h := c.pick(func(h *host) bool { return !h.powered })
	if h == nil {
		return false
	}
	c.note("%s: power again", h.name)
	h.boot()
	return true
}

// split cuts the hosts into two parts that don't hear each other.
func (c *chaos) split() bool {
	var parts [2][]string
	part := make(map[int]int)
	for _, h := range c.hosts {
		i := c.rng.IntN(2)
		part[h.number] = i
		parts[i] = append(parts[i], h.name)
	}
	c.note("split: %v and %v", parts[0], parts[1])
	for i := range part {
		for j := range part {
			if part[i] != part[j] {
				c.cut[[2]int{i, j}] = true
			}
		}
	}
	return true
}

func (c *chaos) cutOneWay() bool {
	a, b := c.pick(isRunning), c.pick(isRunning)
	if a == b {
		return false
	}
	c.note("%s does not hear %s", b.name, a.name)
	c.cut[[2]int{a.number, b.number}] = true
	return true
}

// stick has a host forward nothing, or be well again.
func (c *chaos) stick() bool {
	h := c.pick(func(h *host) bool { return h.running && h.config.Location != "" })
	if h == nil {
		return false
	}
	h.stuck = !h.stuck
	c.note("%s: forwards nothing: %t", h.name, h.stuck)
	return true
}

func (c *chaos) drain() bool {
	h := c.pick(func(h *host) bool { return h.running && h.config.Location != "" })
	if h == nil {
		return false
	}
	undo := c.rng.IntN(2) == 0
	c.note("%s: drain, undo %t", h.name, undo)
	h.memory.Drain(undo)
	c.drained[h] = !undo
	h.tellUrgently()
	return true
}

// changeSettings writes other settings into one file, with a higher generation.
func (c *chaos) changeSettings() bool {
	h := c.pick(isRunning)
	if h == nil {
		return false
	}
	c.cluster = c.drawSettings(c.cluster)
	h.config.Cluster, h.config.Encrypted = c.cluster, c.cluster.Mode == mesh.ModeFull
	clear(c.watched)
	c.note("%s: settings %v", h.name, settingsOf(c.cluster))
	h.settle()
	h.tellUrgently()
	return true
}

// changeLocation takes a host out of its location, or back into it.
func (c *chaos) changeLocation() bool {
	h := c.pick(func(h *host) bool { return h.running && h.place.site > 0 && h.place.underlay != home })
	if h == nil {
		return false
	}
	if h.config.Location != "" {
		h.config.Location = ""
	} else {
		h.config.Location = chaosSites[2*h.place.site].location
	}
	c.note("%s: location %q", h.name, h.config.Location)
	h.tellUrgently()
	return true
}

// changeAddress gives a host another address where it is.
func (c *chaos) changeAddress() bool {
	h := c.pick(func(h *host) bool { return h.powered })
	h.move(h.place, c.freeNumber())
	c.note("%s: now at %v, %v", h.name, h.internal, h.public)
	return true
}

// carryElsewhere takes a host to another site.
func (c *chaos) carryElsewhere() bool {
	h := c.pick(func(h *host) bool { return h.running && h.number > 1 })
	if h == nil {
		return false
	}
	to := chaosSites[c.rng.IntN(len(chaosSites))]
	h.config.Location = to.location
	h.move(to.at, c.freeNumber())
	c.note("%s: carried to location %q, at %v, %v", h.name, h.config.Location, h.internal, h.public)
	h.tellUrgently()
	return true
}

// freeNumber returns one for an address that no host has now.
func (c *chaos) freeNumber() int {
	for {
		n := 10 + c.rng.IntN(240)
		if !slices.ContainsFunc(c.hosts, func(h *host) bool {
			return h.public.As4()[3] == byte(n) || h.internal.IsValid() && h.internal.Addr().As4()[3] == byte(n)
		}) {
			return n
		}
	}
}

func (c *chaos) changeWish() bool {
	h := c.pick(func(h *host) bool { return h.running && h.config.Location != "" })
	if h == nil {
		return false
	}
	h.config.Gateway = []mesh.GatewayPreference{mesh.GatewayAuto, mesh.GatewayPrefer}[c.rng.IntN(2)]
	c.note("%s: gateway %s", h.name, h.config.Gateway)
	h.tellUrgently()
	return true
}

// forget has a dead node forgotten. When its host has power again, it is a new one.
func (c *chaos) forget() bool {
	by := c.pick(isRunning)
	h := c.pick(func(h *host) bool {
		return !h.powered && by != nil && !by.alive()[h.id] && by.peers.store.records[h.id].Sequence > 0
	})
	if h == nil {
		return false
	}
	c.note("%s: forget %s", by.name, h.name)
	by.publish(object{forgotten: &tombstone{h.id, by.peers.store.records[h.id].Sequence}})
	by.tell()
	h.disk = disk{store: newStore(), instance: h.disk.instance}
	h.disk.promise.Claim.Slot = mesh.None
	delete(c.slots, h)
	return true
}

// deleteDevice deletes the device behind the daemon's back.
func (c *chaos) deleteDevice() bool {
	h := c.pick(func(h *host) bool { return h.running && h.kernel.Device != nil })
	if h == nil {
		return false
	}
	c.note("%s: somebody deletes the device", h.name)
	h.kernel.DeleteDevice()
	h.tell()
	return true
}

// loseWay takes a host's way to the network behind it away, or gives it back.
func (c *chaos) loseWay() bool {
	h := c.pick(func(h *host) bool { return h.running && len(h.nearby) > 0 })
	if h == nil {
		return false
	}
	h.nearby = slices.Clone(h.nearby)
	h.nearby[0].Down = !h.nearby[0].Down
	c.note("%s: the way to %v is down: %t", h.name, h.nearby[0].Prefix, h.nearby[0].Down)
	h.tell()
	return true
}

// calm ends what a network or a person ends, and waits until everything is whole. That takes
// as long as WireGuard holds on to a session, three minutes, where a node has moved whose
// packets the NAT of its peer does not let in. What lasts are hosts without power, nodes that
// are drained, and gateways that forward nothing if others can notice: of one that has never
// worked for them, they can't know.
func (c *chaos) calm() {
	c.note("calm")
	clear(c.cut)
	for _, h := range c.hosts {
		if h.powered && !h.running {
			h.startDaemon()
		}
		if c.drained[h] && c.substitutes(h) == 0 && h.running { // else the location may have none
			h.memory.Drain(true)
			c.drained[h] = false
		}
		h.stuck = h.stuck && c.substitutes(h) >= 2 && c.watched[h]
	}
	var missing error
	for end := c.now.Add(4 * time.Minute); c.now.Before(end); {
		c.pass(400*time.Millisecond + c.upTo(200*time.Millisecond)) // not in step with timers
		if missing = c.whole(); missing == nil {
			missing = c.alike()
		}
		if missing == nil {
			missing = c.served()
		}
		if missing == nil {
			break
		}
	}
	if missing != nil {
		c.fail("not whole: %v", missing)
	}
	c.note("whole")
	for _, h := range c.hosts {
		c.watched[h] = slices.ContainsFunc(c.hosts, func(o *host) bool { return o.running && o.concluded.Watch.Gateway == h.id })
	}
	c.checkSlots(c.slots)
	if h := c.pick(isRunning); c.rng.IntN(4) == 0 && c.passUntil(time.Minute, c.quiet) {
		c.checkRestart(h)
	}
}

// substitutes counts the nodes of a host's location that could be a gateway instead.
func (c *chaos) substitutes(h *host) (n int) {
	for _, o := range c.hosts {
		if o != h && o.running && !o.stuck && !c.drained[o] && o.config.Location == h.config.Location && !o.config.Encrypted {
			n++
		}
	}
	return n
}

// quiet reports whether nothing has been written to any kernel for a while, and no gateway
// is down, which would be up again some time.
func (c *chaos) quiet() bool {
	if slices.ContainsFunc(c.hosts, func(h *host) bool { return h.running && c.now.Sub(h.written) < 6*time.Second }) {
		return false
	}
	v := c.hosts[slices.IndexFunc(c.hosts, isRunning)].view()
	for _, verdict := range mesh.GatewayVerdicts(v.Verdicts, v.Records) {
		if !node.IsUp(verdict) {
			return false
		}
	}
	return true
}

// SPDX-License-Identifier: Apache-2.0

package node_test

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/meshd/meshd/internal/mesh"
)

// Gossip of the simulation: each object goes to all nodes that are reached, from there to
// those that only they reach, and takes its time. Every second a node compares all that it
// knows with another node. As much of package gossip is repeated here as decides what counts
// in a View.

const (
	simSync  = time.Second     // between two comparisons
	simDeath = 3 * time.Second // until a silent node is taken for dead
	simVoice = 100 * time.Millisecond
)

// object is something that all nodes are to know. One of its fields is set.
type object struct {
	record    *mesh.Record
	verdict   *verdict
	settings  *settings
	forgotten *tombstone

	path       *mesh.PathRecord
	membership *mesh.Membership
	reach      *mesh.Reach
}

// verdict is a verdict with the records of its subject and its author at that time.
type verdict struct {
	mesh.Verdict
	about, by uint64
}

type verdictKey struct {
	author, subject mesh.ID
}

// settings are what a node says of the cluster.
type settings struct {
	author     mesh.ID
	number     uint64
	generation uint64
	mode       mesh.Mode
	capsules   mesh.Encapsulation
	gateways   int
}

// tombstone has a node forgotten up to a record.
type tombstone struct {
	id   mesh.ID
	upTo uint64
}

// store is what a node knows.
type store struct {
	records   map[mesh.ID]mesh.Record
	verdicts  map[verdictKey]verdict
	settings  map[mesh.ID]settings
	forgotten map[mesh.ID]uint64

	paths       map[mesh.ID]mesh.PathRecord
	memberships map[mesh.ID]mesh.Membership
	reaches     map[mesh.ID]mesh.Reach
}

func newStore() store {
	return store{
		map[mesh.ID]mesh.Record{},
		map[verdictKey]verdict{},
		map[mesh.ID]settings{},
		map[mesh.ID]uint64{},
		map[mesh.ID]mesh.PathRecord{},
		map[mesh.ID]mesh.Membership{},
		map[mesh.ID]mesh.Reach{},
	}
}

func (s store) clone() store {
	return store{
		maps.Clone(s.records), maps.Clone(s.verdicts), maps.Clone(s.settings), maps.Clone(s.forgotten),
		maps.Clone(s.paths), maps.Clone(s.memberships), maps.Clone(s.reaches),
	}
}

// put takes an object in, and reports whether it is news.
func (s store) put(o object) bool {
	switch {
	case o.record != nil:
		id := o.record.ID()
		if o.record.Sequence <= max(s.records[id].Sequence, s.forgotten[id]) {
			return false
		}
		s.records[id] = *o.record
	case o.verdict != nil:
		v := *o.verdict
		k := verdictKey{mesh.IDOf(v.Author), v.Subject}
		if v.Epoch <= s.verdicts[k].Epoch || s.buries(v) {
			return false
		}
		s.verdicts[k] = v
	case o.settings != nil:
		if o.settings.number <= s.settings[o.settings.author].number {
			return false
		}
		s.settings[o.settings.author] = *o.settings
	case o.path != nil:
		return putNewer(s.paths, o.path.Author, *o.path, o.path.Sequence, s.paths[o.path.Author].Sequence)
	case o.membership != nil:
		return putNewer(s.memberships, o.membership.Author, *o.membership, o.membership.Sequence, s.memberships[o.membership.Author].Sequence)
	case o.reach != nil:
		return putNewer(s.reaches, o.reach.Author, *o.reach, o.reach.Sequence, s.reaches[o.reach.Author].Sequence)
	case o.forgotten != nil:
		f := *o.forgotten
		if f.upTo <= s.forgotten[f.id] {
			return false
		}
		s.forgotten[f.id] = f.upTo
		if s.records[f.id].Sequence <= f.upTo {
			delete(s.records, f.id)
		}
		maps.DeleteFunc(s.verdicts, func(_ verdictKey, v verdict) bool { return s.buries(v) })
	}
	return true
}

// putNewer keeps what has the higher sequence.
func putNewer[T any](all map[mesh.ID]T, author mesh.ID, said T, sequence, before uint64) bool {
	if sequence <= before {
		return false
	}
	all[author] = said
	return true
}

// buries reports whether a verdict went with a node that was forgotten.
func (s store) buries(v verdict) bool {
	author := mesh.IDOf(v.Author)
	return s.forgotten[v.Subject] > 0 && v.about <= s.forgotten[v.Subject] || s.forgotten[author] > 0 && v.by <= s.forgotten[author]
}

// all returns what the store has, in a fixed order.
func (s store) all() (list []object) {
	for _, id := range slices.SortedFunc(maps.Keys(s.forgotten), mesh.ID.Compare) {
		list = append(list, object{forgotten: &tombstone{id, s.forgotten[id]}})
	}
	for _, id := range slices.SortedFunc(maps.Keys(s.records), mesh.ID.Compare) {
		list = append(list, object{record: new(s.records[id])})
	}
	for _, k := range slices.SortedFunc(maps.Keys(s.verdicts), verdictKey.compare) {
		list = append(list, object{verdict: new(s.verdicts[k])})
	}
	for _, id := range slices.SortedFunc(maps.Keys(s.settings), mesh.ID.Compare) {
		list = append(list, object{settings: new(s.settings[id])})
	}
	for _, id := range slices.SortedFunc(maps.Keys(s.paths), mesh.ID.Compare) {
		list = append(list, object{path: new(s.paths[id])})
	}
	for _, id := range slices.SortedFunc(maps.Keys(s.memberships), mesh.ID.Compare) {
		list = append(list, object{membership: new(s.memberships[id])})
	}
	for _, id := range slices.SortedFunc(maps.Keys(s.reaches), mesh.ID.Compare) {
		list = append(list, object{reach: new(s.reaches[id])})
	}
	return list
}

// compare orders verdicts as a View does.
func (k verdictKey) compare(o verdictKey) int {
	return cmp.Or(k.subject.Compare(o.subject), k.author.Compare(o.author))
}

// gossip is what one daemon knows of the others.
type gossip struct {
	store  store
	merged bool
	heard  map[mesh.ID]time.Time // outside of the mesh
	seen   map[mesh.ID]time.Time // by the members, when somebody was alive last
}

// newGossip begins with what is on disk, where paths are not.
func newGossip(h *host) gossip {
	known := h.disk.store.clone()
	clear(known.paths)
	return gossip{store: known, heard: make(map[mesh.ID]time.Time), seen: make(map[mesh.ID]time.Time)}
}

// linked reports whether the daemons of two hosts can speak to each other.
func (h *host) linked(o *host) bool {
	return h != o && h.running && o.running && !h.cut[[2]int{h.number, o.number}] && !h.cut[[2]int{o.number, h.number}] &&
		(h.onLAN(o) || h.place.underlay != home || o.place.underlay != home)
}

// linkedHosts returns the hosts with whose daemons this one can speak.
func (h *host) linkedHosts() []*host {
	return slices.DeleteFunc(slices.Clone(h.hosts), func(o *host) bool { return !h.linked(o) })
}

// publish tells all others something.
func (h *host) publish(o object) {
	if h.peers.store.put(o) {
		h.news++
		h.settle()
		h.spread(o)
	}
}

// spread passes an object on.
func (h *host) spread(o object) {
	for _, to := range h.linkedHosts() {
		to.later(h.gossipDelay(h, to), func() { to.takeIn(o) })
	}
}

// takeIn takes an object in that another node has sent.
func (h *host) takeIn(o object) {
	if !h.peers.store.put(o) {
		return
	}
	h.settle()
	h.spread(o)
	if o.verdict != nil {
		h.tellUrgently()
	} else {
		h.tell()
	}
}

// say publishes a verdict, see publishVerdicts in package daemon.
func (h *host) say(v mesh.Verdict) {
	if own := h.memory.Own; v.Record > own.Sequence {
		h.fail("%s: a verdict that names a record which was not told", h.name)
	}
	s := h.peers.store
	v.Epoch = max(v.Epoch, s.verdicts[verdictKey{h.id, v.Subject}].Epoch+1)
	h.note("%s: %s is %s, epoch %d", h.name, h.byID(v.Subject).name, v.State, v.Epoch)
	h.publish(object{verdict: &verdict{v, max(s.records[v.Subject].Sequence, v.Record), s.records[h.id].Sequence}})
}

// greet lets others hear this node, and it them.
func (h *host) greet() {
	for _, o := range h.linkedHosts() {
		h.later(2*simTunnel, func() { h.meet(o) })
	}
}

// compare compares all that two nodes know, again and again.
func (h *host) compare() {
	if linked := h.linkedHosts(); len(linked) > 0 {
		o := linked[h.rng.IntN(len(linked))]
		h.meet(o)
		h.later(2*simTunnel, func() {
			if h.linked(o) {
				h.merge(o)
				o.merge(h)
			}
		})
	}
	h.later(simSync+time.Duration(h.rng.Int64N(int64(simSync/4))), h.compare)
}

// merge takes in all that another node knows.
func (h *host) merge(o *host) {
	first := !h.peers.merged
	h.peers.merged = true
	if first {
		h.tell()
	}
	for _, thing := range o.peers.store.all() {
		h.takeIn(thing)
	}
	h.settle()
}

// meet has two nodes hear each other. The members that either of them reaches are alive.
func (h *host) meet(o *host) {
	if !h.linked(o) {
		return
	}
	h.peers.heard[o.id], o.peers.heard[h.id] = h.now, h.now
}

// ask has nodes give a sign of life outside of the mesh.
func (h *host) ask(ids []mesh.ID) {
	for _, id := range ids {
		o := h.byID(id)
		h.later(simVoice, func() {
			if h.linked(o) {
				h.peers.heard[id] = h.now
			}
		})
	}
}

// watchMembers looks who is alive: those that are reached, maybe by way of others.
func (s *simulation) watchMembers() {
	for _, h := range s.hosts {
		if !h.running {
			continue
		}
		before := len(h.alive())
		for _, o := range h.reached() {
			h.peers.seen[o.id] = s.now
		}
		if len(h.alive()) != before {
			h.tell()
		}
	}
	s.after(simSync/2, s.watchMembers)
}

// reached returns the hosts whose daemons this one reaches, itself among them.
func (h *host) reached() []*host {
	list := []*host{h}
	for i := 0; i < len(list); i++ {
		for _, o := range list[i].linkedHosts() {
			if !slices.Contains(list, o) {
				list = append(list, o)
			}
		}
	}
	return list
}

// alive returns who is alive, as this node sees it.
func (h *host) alive() map[mesh.ID]bool {
	alive := map[mesh.ID]bool{h.id: true}
	for id, at := range h.peers.seen {
		if h.now.Sub(at) < simDeath {
			alive[id] = true
		}
	}
	return alive
}

// view returns what this node knows.
func (h *host) view() mesh.View {
	g, id := h.peers, h.id
	v := mesh.View{
		Alive: h.alive(), Cluster: h.effective(), Merged: g.merged, JoinEmpty: !h.config.Joins,
		Forgotten: g.store.forgotten[id], OwnSequence: max(g.store.records[id].Sequence, g.store.forgotten[id]),
	}
	v.Alone = len(v.Alive) == 1
	for _, id := range slices.SortedFunc(maps.Keys(g.store.records), mesh.ID.Compare) {
		v.Records = append(v.Records, g.store.records[id])
	}
	counts := func(id mesh.ID) bool { return g.store.records[id].Sequence > 0 }
	for _, k := range slices.SortedFunc(maps.Keys(g.store.verdicts), verdictKey.compare) {
		if counts(k.author) && counts(k.subject) {
			v.Verdicts = append(v.Verdicts, g.store.verdicts[k].Verdict)
		}
	}
	v.Verdicts = mesh.WithinEpochStep(v.Verdicts)
	v.Paths = saidBy(g.store.paths, counts)
	v.Memberships = saidBy(g.store.memberships, counts)
	v.Reaches = saidBy(g.store.reaches, counts)
	mesh.Locate(v.Records, v.Memberships)
	mesh.Prove(v.Records, v.Reaches)
	v.MetAt = make(map[mesh.ID]netip.Addr)
	for met := range g.heard {
		v.MetAt[met] = h.byID(met).addressFor(h).Addr()
	}
	return v
}

// saidBy returns what the nodes that count have said, sorted by author.
func saidBy[T any](all map[mesh.ID]T, counts func(mesh.ID) bool) (said []T) {
	for _, id := range slices.SortedFunc(maps.Keys(all), mesh.ID.Compare) {
		if counts(id) {
			said = append(said, all[id])
		}
	}
	return said
}

// effective returns the settings in use: those of the file, or adopted ones of a higher
// generation.
func (h *host) effective() mesh.Cluster {
	if h.disk.adopted.Generation > h.config.Cluster.Generation {
		return h.disk.adopted
	}
	return h.config.Cluster
}

// settle adopts the highest generation of settings, and announces those in use if nobody
// has: see updateSettings in package gossip.
func (h *host) settle() {
	s, used := h.peers.store, h.effective()
	if !h.peers.merged {
		return
	}
	told := make(map[settings]bool) // without their authors
	var top settings
	for id, o := range s.settings {
		if s.records[id].Sequence == 0 {
			continue
		}
		o.author, o.number = mesh.ID{}, 0
		told[o] = true
		if o.generation > top.generation {
			top = o
		}
	}
	agreed := true
	for o := range told {
		agreed = agreed && (o == top || o.generation < top.generation)
	}
	if agreed && top.generation > used.Generation {
		used.Generation, used.Mode, used.Encapsulation, used.Gateways = top.generation, top.mode, top.capsules, top.gateways
		h.disk.adopted = used
		h.tell()
	}
	own := settingsOf(used)
	if !told[own] && s.records[h.id].Sequence > 0 {
		own.author, own.number = h.id, s.settings[h.id].number+1
		h.publish(object{settings: &own})
	}
}

// settingsOf returns a cluster's settings, without an author.
func settingsOf(c mesh.Cluster) settings {
	return settings{generation: c.Generation, mode: c.Mode, capsules: c.Encapsulation, gateways: c.Gateways}
}

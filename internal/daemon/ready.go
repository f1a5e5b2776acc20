// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"net/netip"
	"slices"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg"
)

// aloneFor is how long a node waits for its first peer or neighbor before it is ready
// without one: k3s must be able to start on a node whose others are down, and
// starts best when the others are there.
const aloneFor = 20 * time.Second

// contestable is how long a new claim may still turn out to be somebody else's:
// a node that starts at the same moment takes that long to be heard of, at the
// most. Until then no pod may start, because pods can't move to other addresses.
// That goes for the first node of a mesh too: one that joins it may have merged
// its state before it claimed, and then wants the same slot.
const contestable = 3 * time.Second

// settled says how long it takes until the claim can be relied on. One from disk
// under which no pod ever ran may have become another node's meanwhile.
func (d *daemon) settled(t turn) (wait time.Duration) {
	if d.node.Ready {
		return 0
	}
	since := d.claimed
	if since.IsZero() {
		since = d.started
	}
	wait = contestable - t.now.Sub(since)
	if !d.listened(t.view, t.now) {
		wait = max(wait, listenFirst-t.now.Sub(d.started))
	}
	return max(wait, 0)
}

// listened says whether somebody has told what is claimed already, or nobody is
// there to do so.
func (d *daemon) listened(view mesh.View, now time.Time) bool {
	return view.Merged || view.JoinEmpty || now.Sub(d.started) >= listenFirst
}

// readiness is whether systemd and the state directory have been told.
type readiness struct{ told bool }

// ready tells systemd that k3s may start, once the node can carry pods: its
// overlay address is on the device, the CNI configuration is in place, and
// first peers or neighbors are set, or there is nobody to wait for.
func (d *daemon) ready(t *turn) error {
	if d.readiness.told || !t.cni || !t.k3s || !hasAddresses(t.observed, t.desired) {
		return nil
	}
	wait := d.settled(*t)
	if len(t.topology.Peers) == 0 && len(t.topology.Neighbors) == 0 && !t.view.JoinEmpty {
		wait = max(wait, aloneFor-t.now.Sub(d.started))
	}
	if wait > 0 {
		t.wakeIn(wait)
		return nil
	}
	if err := d.promiseReady(); err != nil {
		return err
	}
	d.readiness.told = true
	d.log.Info("ready", "overlay", t.topology.Addresses, "pods", t.topology.PodCIDRs, "peers", len(t.topology.Peers))
	d.services.Notify(sd.SdNotifyReady)
	return nil
}

// hasAddresses says whether the device is up with the wanted addresses, of which
// there has to be one.
func hasAddresses(observed, desired netcfg.State) bool {
	missing := func(a netip.Prefix) bool { return !slices.Contains(observed.Addresses, a) }
	return observed.Device != nil && observed.Device.Up && len(desired.Addresses) > 0 && !slices.ContainsFunc(desired.Addresses, missing)
}

// promiseReady writes down that pods may run on the claimed addresses.
func (d *daemon) promiseReady() error {
	if d.node.Ready {
		return nil
	}
	promised := d.node
	promised.Ready = true
	if err := d.dir.SaveNode(promised); err != nil {
		return err
	}
	d.node = promised
	return nil
}

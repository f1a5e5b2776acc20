// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"
)

// aloneFor is how long a node waits for its first peer before it is ready
// without one: k3s must be able to start on a node whose others are down, and
// starts best when the others are there.
const aloneFor = 20 * time.Second

// readiness is whether systemd and the state directory have been told.
type readiness struct{ told bool }

// ready tells systemd that k3s may start, once the node can carry pods: its
// overlay address is on the device, the CNI configuration is in place, and
// first peers are set, or there is nobody to wait for. It returns how long there
// is still to wait, if time alone is missing.
func (d *daemon) ready(t turn) time.Duration {
	if d.readiness.told || t.err != nil || !t.device || !t.cni {
		return 0
	}
	if wait := aloneFor - t.now.Sub(d.started); len(t.topology.Peers) == 0 && !t.view.JoinEmpty && wait > 0 {
		return wait
	}
	if !d.node.Ready {
		promised := d.node
		promised.Ready = true
		if err := d.dir.SaveNode(promised); err != nil {
			d.log.Error("ready, but can't write that down", "err", err)
			return retryMax
		}
		d.node = promised
	}
	d.readiness.told = true
	d.log.Info("ready", "overlay", t.topology.Addresses, "pods", t.topology.PodCIDRs, "peers", len(t.topology.Peers))
	notify(sd.SdNotifyReady)
	return 0
}

// notify tells systemd something; without systemd it does nothing.
func notify(state string) {
	// An error means that systemd's socket is gone, and then nobody listens.
	_, _ = sd.SdNotify(false, state)
}

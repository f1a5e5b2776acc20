// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/state"
)

// adoptedSettings returns the settings in force if they are not those of the file, else
// zero. Which are in force is decided by gossip.
func adoptedSettings(file, inForce mesh.Cluster) state.Adopted {
	if a := settingsOf(inForce); a != settingsOf(file) {
		return a
	}
	return state.Adopted{}
}

func settingsOf(c mesh.Cluster) state.Adopted {
	return state.Adopted{Generation: c.Generation, Mode: c.Mode, Encapsulation: c.Encapsulation, Gateways: c.Gateways}
}

// withSettings returns the file's cluster with settings that were adopted before a restart;
// zero if there are none.
func withSettings(file mesh.Cluster, a state.Adopted) mesh.Cluster {
	if a == (state.Adopted{}) {
		return mesh.Cluster{}
	}
	file.Generation, file.Mode, file.Encapsulation, file.Gateways = a.Generation, a.Mode, a.Encapsulation, a.Gateways
	return file
}

// adopt takes over the settings on which the nodes agree. They are saved to disk: a node that
// returned to its file at a restart would send packets that no node accepts.
func (d *daemon) adopt(used mesh.Cluster) error {
	d.settings = used
	a := adoptedSettings(d.cfg.Cluster, used)
	if a == d.disk.node.Adopted {
		return nil
	}
	next := d.disk.node
	next.Adopted = a
	if err := d.disk.saveNode(next); err != nil {
		return err
	}
	d.log.Info("cluster settings", "generation", used.Generation, "mode", used.Mode, "encapsulation", used.Encapsulation, "gateways", used.Gateways)
	return nil
}

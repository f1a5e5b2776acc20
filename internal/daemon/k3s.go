// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/meshd/meshd/internal/config"
	"github.com/meshd/meshd/internal/k3s"
	"github.com/meshd/meshd/internal/mesh"
)

// etcdTimings returns the timings of the member of etcd on this host, "" if there is none.
func etcdTimings(cfg config.Config, found k3s.Settings) mesh.EtcdTimings {
	if k3sRole(cfg, found) != k3s.Server || !found.RunsEtcd() {
		return ""
	}
	return cfg.K3s.Etcd
}

// k3sRole returns the configured role, or the one that was found if the former is auto.
func k3sRole(cfg config.Config, found k3s.Settings) k3s.Role {
	if cfg.K3s.Role == config.RoleAuto {
		return found.Role
	}
	return k3s.Role(cfg.K3s.Role)
}

// k3sWanted returns what k3s's configuration follows from, and reports whether it can be
// written.
func k3sWanted(t turn) (k3s.Wanted, bool) {
	w := k3s.Wanted{
		Role: k3sRole(t.cfg, t.k3s), Overlay: t.wanted.Topology.Addresses, Zone: t.cfg.Node.Location, Etcd: t.cfg.K3s.Etcd, Cluster: t.cfg.Cluster,
	}
	return w, t.cfg.K3s.WriteConfig && len(w.Overlay) > 0
}

// ProblemK3s means that somebody else's file is in the place of k3s's configuration.
const ProblemK3s mesh.ProblemKind = "k3s-configuration"

// applyK3s writes k3s's configuration if it is wanted, once this node's claim can be relied
// on. It reports whether k3s may start: the file is in place, or not wanted, or somebody else's.
func (d *daemon) applyK3s(t *turn, claimWait time.Duration) (done bool) {
	wanted, can := k3sWanted(*t)
	if !can {
		return !t.cfg.K3s.WriteConfig
	}
	if claimWait > 0 {
		t.recheckIn(claimWait)
		return false
	}
	err := d.writeK3s(wanted)
	if errors.Is(err, k3s.ErrForeign) {
		t.note([]mesh.Problem{{
			Kind: ProblemK3s, Node: d.cfg.Node.Name, Text: fmt.Sprintf("k3s.write-config is true, and %s was not written by meshd: k3s does what it says", k3s.DropIn),
			Advice: "remove the file, or give it another name if it has settings of yours: then meshd writes its own; or set k3s.write-config to false",
		}}, nil)
		return true
	}
	t.note(nil, err)
	return err == nil
}

// writeK3s writes k3s's configuration.
func (d *daemon) writeK3s(wanted k3s.Wanted) error {
	if err := d.saveReady(); err != nil {
		return err
	}
	changed, err := d.services.WriteK3s(wanted)
	if err != nil {
		return explainReadOnly(err, filepath.Dir(k3s.DropIn))
	}
	if changed {
		d.log.Info("k3s's configuration written; k3s reads it when it starts", "path", k3s.DropIn, "role", wanted.Role)
	}
	return nil
}

// planK3s lists what would change of k3s's configuration.
func planK3s(t turn) ([]string, error) {
	wanted, can := k3sWanted(t)
	if !can {
		return nil, nil
	}
	differs, err := k3s.Differs("/", wanted)
	if errors.Is(err, k3s.ErrForeign) {
		return nil, nil
	}
	if !differs {
		return nil, err
	}
	return []string{"write " + k3s.DropIn}, nil
}

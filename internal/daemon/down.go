// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/meshd/meshd/internal/cni"
	"github.com/meshd/meshd/internal/config"
	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/k3s"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg/host"
	"github.com/meshd/meshd/internal/path/forward"
	"github.com/meshd/meshd/internal/path/relaynft"
	"github.com/meshd/meshd/internal/state"
)

// Down removes from the host everything that a daemon has set up: device, routes, nft tables,
// configuration of CNI and k3s, and its port mappings on routers. It returns what it removed, one line each. The state directory
// stays, so that the node keeps its identity and slot, and so do kernel parameters, on which
// other programs may rely by now. Errors wrap control.ErrRefused while a daemon runs, because
// the daemon would put everything back, and while pods run, unless opt.Force is set. Nothing
// has been removed then.
func Down(ctx context.Context, opt Options) (removed []string, err error) {
	cfg, err := readConfig(opt.Config)
	if err != nil {
		return nil, err
	}
	// The lock also finds a daemon whose socket was deleted, and keeps another from
	// starting meanwhile.
	lock, err := state.Lock(opt.StateDir)
	if err != nil && !errors.Is(err, state.ErrLocked) {
		return nil, err
	}
	if err == nil {
		defer func() { err = errors.Join(err, lock.Close()) }()
		_, err = control.NewClient(opt.RunDir).Status(ctx)
	}
	if !errors.Is(err, control.ErrNotRunning) {
		return nil, fmt.Errorf("%w: meshd is running; stop it first: systemctl stop meshd", control.ErrRefused)
	}
	kernel, err := host.Open(host.Options{Logger: opt.Logger, Interface: cfg.WireGuard.Interface, Bridge: cfg.CNI.Bridge})
	if err != nil {
		return nil, fmt.Errorf("open host: %w", err)
	}
	defer func() { err = errors.Join(err, kernel.Close()) }()
	pods, err := kernel.PodLinks()
	if err != nil {
		return nil, fmt.Errorf("look for pods: %w", err)
	}
	if len(pods) > 0 {
		if !opt.Force {
			return nil, fmt.Errorf("%w: pods run on this host, on the bridge %s (%s): they would be cut off from other nodes, and can't be stopped without the CNI plugins; "+
				"stop k3s and its pods first: k3s-killall.sh; --force removes everything all the same", control.ErrRefused, cfg.CNI.Bridge, mesh.Some(pods, shownPods))
		}
		opt.Logger.Warn("pods run on this host: they are cut off from other nodes, and their bridge stays", "bridge", cfg.CNI.Bridge, "links", pods)
	}
	removed, mappingErr := removePortMappings(ctx, opt.StateDir)
	// Remove the CNI configuration first, so that no pod starts on a bridge without a
	// network.
	if cfg.CNI.Enabled {
		fromCNI, err := removeCNI(cfg.CNI)
		removed = append(removed, fromCNI...)
		if err != nil {
			return removed, err
		}
	}
	if ours, err := k3s.Remove("/"); err != nil {
		return removed, err
	} else if ours {
		removed = append(removed, "delete "+k3s.DropIn)
	}
	if ours, err := relaynft.Remove(); err != nil {
		return removed, err
	} else if ours {
		removed = append(removed, "nft table netdev "+forward.TableName)
	}
	links, linkErr := host.RemoveLinks(nil)
	for _, name := range links {
		removed = append(removed, "link "+name)
	}
	fromHost, err := kernel.Remove(ctx)
	return append(removed, fromHost...), errors.Join(err, linkErr, mappingErr)
}

// shownPods is how many links of pods an error lists.
const shownPods = 4

func removeCNI(c config.CNI) ([]string, error) {
	cfg := cniWithoutPods(c)
	observed, err := cni.Observe(cfg)
	if err != nil {
		return nil, fmt.Errorf("observe CNI: %w", err)
	}
	changes := cni.PlanRemoval(cfg, observed)
	removed := make([]string, 0, len(changes))
	for _, c := range changes {
		if err := cni.Apply([]cni.Change{c}); err != nil {
			return removed, fmt.Errorf("remove CNI configuration: %w", err)
		}
		removed = append(removed, c.String())
	}
	return removed, nil
}

// readConfig reads the configuration without the secret, which may have been deleted already.
func readConfig(path string) (config.Config, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return config.Config{}, fmt.Errorf("read configuration: %w", err)
	}
	return config.Parse(path, data)
}

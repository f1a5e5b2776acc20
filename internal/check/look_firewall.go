// SPDX-License-Identifier: Apache-2.0

package check

import (
	"context"
	"errors"

	"github.com/meshd/meshd/internal/config"
	"github.com/meshd/meshd/internal/netcfg/host"
)

// lookFilters reads all tables of other programs that filter packets to this host or
// through it.
func (f *Facts) lookFilters(ctx context.Context, cfg config.Config) (err error) {
	kernel, err := host.Open(host.Options{Interface: cfg.WireGuard.Interface, Bridge: cfg.CNI.Bridge})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, kernel.Close()) }()
	f.Filters, err = kernel.Filters(ctx)
	return err
}

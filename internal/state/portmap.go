// SPDX-License-Identifier: Apache-2.0

package state

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/meshd/meshd/internal/portmap"
)

// PortMappingsFile is the name of the file in the state directory with the port mappings that
// routers have made for this host. Some stay until they are removed, also over a boot.
const PortMappingsFile = "portmap.cbor"

// LoadPortMappings returns what SavePortMappings has written last into the state directory at
// dir, or nothing if there is no file. After an error the mappings are asked for as if they were
// new.
func LoadPortMappings(dir string) ([]portmap.Mapping, error) {
	all, err := readSummed[portmap.Mapping](filepath.Join(dir, PortMappingsFile))
	if err != nil {
		return nil, fmt.Errorf("read port mappings: %w", err)
	}
	return all, nil
}

// SavePortMappings replaces the file, or removes it if there are no mappings. After an error the
// old file is still there. The caller must make sure that no other daemon uses the directory.
func SavePortMappings(dir string, all []portmap.Mapping) error {
	if err := keepPortMappings(filepath.Join(dir, PortMappingsFile), all); err != nil {
		return fmt.Errorf("keep port mappings: %w", err)
	}
	return nil
}

func keepPortMappings(file string, all []portmap.Mapping) error {
	if len(all) > 0 {
		data, err := encodeSummed(all)
		if err != nil {
			return err
		}
		return replaceFile(file, data)
	}
	if err := removeLeftovers(file); err != nil {
		return err
	}
	if err := os.Remove(file); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

#!/usr/bin/env bash
# Runs an archive with a viewer for `synboost listen` on a Debian machine: Orthanc, OHIF and the node, for this machine alone.
# Clips that are stored in Orthanc go to the node, and its results come back; http://127.0.0.1:3000 shows them.
#
#   bash scripts/setup_archive.sh FOLDER [options of `synboost listen`]     installs what is missing and runs until Ctrl-C
#   curl http://127.0.0.1:8043/instances --data-binary @clip.dcm            stores a clip
#
#   SYNBOOST           the command of this package (default: synboost)
#   SYNBOOST_PORTS     ports of OHIF, of Orthanc's web server and DICOM server, and of the node (default: "3000 8043 4243 11112")
#
# FOLDER holds patients' images. Whoever works on this machine can see them: there are no passwords. Orthanc 1.10 cannot bind its ports
# to one address: it refuses other machines, and a firewall should close them.
set -euo pipefail
umask 077

OHIF=3.13.2
HTTP_SERVER=14.1.1
read -r VIEWER WEB DICOM NODE <<<"${SYNBOOST_PORTS:-3000 8043 4243 11112}"
[ $# -ge 1 ] || { sed -n '2,13s/^# \{0,1\}//p' "$0" >&2; exit 2; }
mkdir -p "$1/orthanc"
FOLDER="$(cd "$1" && pwd)"
shift

if ! command -v npm >/dev/null || [ ! -e /usr/share/orthanc/plugins/libOrthancDicomWeb.so ]; then
    apt-get update
    apt-get install -y --no-install-recommends orthanc orthanc-dicomweb npm
    # the package starts an archive of its own
    if [ -d /run/systemd/system ]; then systemctl disable --now orthanc; fi
fi
if [ ! -e "$FOLDER/ohif-$OHIF/viewer/index.html" ]; then
    (cd "$FOLDER" && npm pack --silent "@ohif/app@$OHIF" && tar -xzf "ohif-app-$OHIF.tgz" package/dist && rm "ohif-app-$OHIF.tgz")
    rm -rf "$FOLDER/ohif-$OHIF"
    mv "$FOLDER/package/dist" "$FOLDER/ohif-$OHIF"
    rmdir "$FOLDER/package"
    mkdir "$FOLDER/ohif-$OHIF/viewer"
    cp "$FOLDER/ohif-$OHIF/index.html" "$FOLDER/ohif-$OHIF/viewer/" # the address of an opened study
fi
[ -e "$FOLDER/node_modules/.bin/http-server" ] || npm install --silent --prefix "$FOLDER" "http-server@$HTTP_SERVER"

cat >"$FOLDER/ohif-$OHIF/app-config.js" <<'END'
window.config = {
  routerBasename: null,
  extensions: [],
  modes: [],
  showStudyList: true,
  defaultDataSourceName: 'orthanc',
  dataSources: [
    {
      namespace: '@ohif/extension-default.dataSourcesModule.dicomweb',
      sourceName: 'orthanc',
      configuration: {
        friendlyName: 'Orthanc',
        name: 'orthanc',
        qidoRoot: '/dicom-web',
        wadoRoot: '/dicom-web',
        wadoUriRoot: '/dicom-web',
        imageRendering: 'wadors',
        thumbnailRendering: 'wadors',
        enableStudyLazyLoad: true,
        supportsWildcard: true,
        omitQuotationForMultipartRequest: true,
      },
    },
  ],
};
END
cat >"$FOLDER/forward.lua" <<'END'
-- Sends clips and images to the node; its own overlays are results.
function OnStoredInstance(instance, tags)
  local is_result = tags['Manufacturer'] == 'SynBoost-MONAI' and string.find(tags['ImageType'] or '', '^DERIVED\\SECONDARY')
  if tags['Modality'] == 'US' and not is_result then
    SendToModality(instance, 'synboost')
  end
end
END
cat >"$FOLDER/orthanc.json" <<END
{
  "StorageDirectory": "$FOLDER/orthanc",
  "IndexDirectory": "$FOLDER/orthanc",
  "Plugins": ["/usr/share/orthanc/plugins/libOrthancDicomWeb.so"],
  "LuaScripts": ["$FOLDER/forward.lua"],
  "HttpPort": $WEB,
  "RemoteAccessAllowed": false,
  "AuthenticationEnabled": false,
  "DicomPort": $DICOM,
  "DicomAet": "ORTHANC",
  "DicomCheckModalityHost": true,
  "DicomAlwaysAllowEcho": false,
  "DicomAlwaysAllowStore": false,
  "DicomModalities": {"synboost": ["SYNBOOST", "127.0.0.1", $NODE]}
}
END

trap 'trap - EXIT; kill $(jobs -p) 2>/dev/null; wait' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
"${SYNBOOST:-synboost}" listen "$FOLDER/node" --destination ORTHANC@127.0.0.1:$DICOM --port "$NODE" --segmentation ohif "$@" &
node=$!
# before the node listens, a clip that is stored would not go to it
until (: <"/dev/tcp/127.0.0.1/$NODE") 2>/dev/null || ! kill -0 "$node" 2>/dev/null; do sleep 1; done
Orthanc "$FOLDER/orthanc.json" >"$FOLDER/orthanc.log" 2>&1 &
# what is no file of OHIF is a question to Orthanc, which has to know the address that the browser sees: it names it in its answers
"$FOLDER/node_modules/.bin/http-server" "$FOLDER/ohif-$OHIF" -a 127.0.0.1 -p "$VIEWER" -c-1 --silent --proxy "http://127.0.0.1:$WEB" \
    --proxy-options.headers.Forwarded="host=127.0.0.1:$VIEWER;proto=http" 2>"$FOLDER/http-server.log" &
echo "setup_archive.sh: http://127.0.0.1:$VIEWER shows the studies; Ctrl-C ends all"
wait -n
echo "setup_archive.sh: one of the three programs has ended; see $FOLDER/orthanc.log" >&2
exit 1
